// The hand-over with real guardians in processes of their own and fake trees: whatever dies, never two running copies,
// never none, and nothing left behind.
#include <gtest/gtest.h>
#include <poll.h>

#include <filesystem>
#include <thread>

#include "core/image/magic.h"
#include "images/pstree.pb.h"
#include "migrate/session/handover/holds.h"
#include "migrate/session/handover/link_words.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/reserve_wire.h"
#include "tests/session/fake_trees.h"
#include "tests/session/in_child.h"
#include "tests/session/temp_dir.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::Answer;
using wire::GuardianReply;
using wire::GuardianRequest;
using wire::Resolve;

class NoEvents final : public Events {
  void event(std::string_view, const std::string&, EventFields) override {}
  void progress(std::string_view, const std::string&, EventFields) override {}
};

Timeouts short_times() {
  Timeouts t;
  t.answer = t.freeze = t.restore = milliseconds(1000);
  t.silence = milliseconds(300);
  return t;
}

/// Two hosts: a board, a state folder for each side.
struct Hosts {
  SharedBoard board;
  TempDir source_dir, destination_dir;
  LoggerPtr log = null_logger();
  FakeKeeper keeper{*board};
  JournalStore source_store{source_dir.path()}, destination_store{destination_dir.path()};
  DestinationSessions sessions{destination_store, keeper, short_times(), *log};
  SessionId id = new_session_id();
  NoEvents events;

  SourceHold hold(const std::string& fault = "") {
    return {source_store, keeper, fork_guardian(Role::source, *board, source_dir.path(), fault), short_times(), *log};
  }
  GuardianRequest::StartSource start_source() const {
    GuardianRequest::StartSource s;
    s.set_state_dir(source_dir.path());
    s.set_session(to_hex(id));
    s.set_label("fake");
    s.set_peer("there");
    s.set_silence_ms(300);
    s.mutable_dump()->set_root(::getpid());
    return s;
  }
  State source_state() const { return source_store.peek(id, Role::source)->state; }
  std::optional<State> destination_state() const {
    const auto e = destination_store.peek(id, Role::destination);
    return e ? std::optional(e->state) : std::nullopt;
  }
  AskDestination ask() {
    return [this](const SessionId& session, uint64_t epoch, Resolve::Want want) {
      wire::Message m;
      m.set_session(session.data(), session.size());
      m.set_epoch(epoch);
      m.mutable_resolve()->set_want(want);
      return answer_resolve(sessions, m, "");
    };
  }
  /// What `migrate resolve` at the source does.
  Settled resolve() {
    settle_local(source_store, keeper, short_times(), events, *log);
    settle_local(destination_store, keeper, short_times(), events, *log);
    const State state = source_state();
    if (state == State::aborted) {
      tell_outcome(source_store, id, ask(), *log);
      return {Settled::Outcome::runs_here, ""};
    }
    std::optional<Journal> journal = source_store.take_over(id, Role::source);
    if (!journal) return {Settled::Outcome::in_doubt, "owned"};
    const Settled settled = settle_source(*journal, keeper, ask(), *log);
    journal.reset();
    tell_outcome(source_store, id, ask(), *log);
    return settled;
  }
  /// The promise.
  void expect_one_running(const std::string& where) const {
    EXPECT_NE(board->source.running.load(), board->destination.running.load()) << where;
    EXPECT_FALSE(board->source.running && board->destination.exists) << where << ": a copy was left behind";
    EXPECT_FALSE(board->destination.running && board->source.exists) << where << ": the source was left behind";
    EXPECT_FALSE(board->source.in_our_cgroup) << where;
    EXPECT_FALSE(board->destination.in_our_cgroup) << where;
  }
};

/// The destination's guardian, started and told what an agent tells it.
struct DestinationAgent {
  Hosts& hosts;
  std::optional<Guardian> guardian;
  bool started = false;

  DestinationAgent(Hosts& h, const std::string& fault) : hosts(h) {
    guardian.emplace(fork_guardian(Role::destination, *h.board, h.destination_dir.path(), fault));
  }
  Deadline soon() const { return Deadline::in(milliseconds(3000)); }
  void start(uint64_t max_tasks = 0) {
    if (std::exchange(started, true)) return;
    GuardianRequest request;
    auto* s = request.mutable_start_destination();
    s->set_state_dir(hosts.destination_dir.path());
    s->set_session(to_hex(hosts.id));
    s->set_peer_epoch(1);
    s->set_timeout_ms(1000);
    s->set_max_tasks(max_tasks);
    s->set_any_gid(true);
    guardian->ask(request, soon());
  }
  void prepare() {
    ImageSet images;
    images.adopt("inventory.img", {std::byte{7}});
    start();
    make_room();
    prepare(images);
  }
  void prepare(const ImageSet& images, uint64_t max_tasks = 0) {
    start(max_tasks);
    GuardianRequest prepare;
    prepare.set_prepare(true);
    guardian->send(prepare);
    guardian->socket().send_blob(encode_images(images));
    guardian->await(soon());
    receive_room(guardian->socket(), soon());
    GuardianRequest finish;
    finish.set_finish(true);
    guardian->ask(finish, soon());
  }
  /// While the tree runs at the source.
  void make_room() {
    TreeLayout layout;
    layout.tasks.push_back({.pid = 7, .ppid = 0, .pgid = 7, .sid = 7, .areas = {}});
    GuardianRequest request;
    request.set_layout(true);
    guardian->send(request);
    send_body(whole(layout));
    guardian->await(soon());
    receive_room(guardian->socket(), soon());
    request.set_reserve(true);
    guardian->send(request);
    send_body(to_wire(std::span<const PageReserve>()).front());
    guardian->await(soon());
  }
  template <class Body>
  void send_body(const Body& body) {
    const std::string text = body.SerializeAsString();
    guardian->socket().send_blob(as_bytes_of(text));
  }
  void open() {
    GuardianRequest request;
    request.set_open(1);
    guardian->ask(request, soon());
  }
  void done() {
    GuardianRequest request;
    request.set_done(true);
    guardian->ask(request, soon());
    guardian->leave(soon());
  }
};

TEST(Handover, GoodCase) {
  Hosts h;
  SourceHold source = h.hold();
  DestinationAgent destination(h, "");
  source.start(h.start_source());
  const FrozenTree frozen = source.freeze();
  EXPECT_EQ(frozen.memories.size(), 1u);
  EXPECT_EQ(frozen.memories[0].pages(), 2u);
  EXPECT_FALSE(h.board->source.running);
  destination.prepare();
  EXPECT_EQ(h.destination_state(), State::prepared);
  source.commit();
  EXPECT_EQ(h.source_state(), State::committed);
  destination.open();
  source.kill();
  destination.done();
  EXPECT_EQ(h.source_state(), State::done);
  EXPECT_EQ(h.destination_state(), State::done);
  h.expect_one_running("good case");
  EXPECT_TRUE(h.board->destination.running);
}

TEST(Handover, ARefusedStopLeavesItRunning) {
  Hosts h;
  h.board->stop_fails = true;
  SourceHold source = h.hold();
  source.start(h.start_source());
  EXPECT_THROW(source.freeze(), Refusal);
  EXPECT_TRUE(source.abort("refused"));
  EXPECT_EQ(h.source_state(), State::aborted);
  h.expect_one_running("refused");
}

TEST(Handover, AFullDiskBeforeCommitLeavesItRunning) {
  Hosts h;
  h.board->disk_full_after_hold = true;
  SourceHold source = h.hold();
  source.start(h.start_source());
  source.freeze();
  EXPECT_THROW(source.commit(), Error);
  EXPECT_FALSE(source.committed());
  EXPECT_TRUE(source.abort("disk full"));
  h.expect_one_running("disk full");
  EXPECT_FALSE(h.source_store.peek(h.id, Role::source));  // forgotten: unknown, never resumed
}

TEST(Handover, ASilentAgentIsGivenUpAndItsLateCommitRefused) {
  Hosts h;
  SourceHold source = h.hold();
  source.start(h.start_source());
  source.freeze();
  // The agent is "stopped": it says nothing until the guardian has settled.
  const Deadline deadline = Deadline::in(milliseconds(5000));
  pollfd dead{*source.death_fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&dead, 1, deadline.poll_timeout()), 1);
  EXPECT_EQ(h.source_state(), State::aborted);
  EXPECT_THROW(source.commit(), Error);
  EXPECT_FALSE(source.committed());
  EXPECT_TRUE(source.abort("late"));
  h.expect_one_running("silent agent");
}

TEST(Handover, TheSourceAgentDies) {
  for (const bool commit : {false, true}) {
    Hosts h;
    std::optional<DestinationAgent> destination(std::in_place, h, "");
    {
      SourceHold source = h.hold();
      source.start(h.start_source());
      source.freeze();
      destination->prepare();
      if (commit) source.commit();
      // Its end of the socket closes here.
    }
    const Deadline deadline = Deadline::in(milliseconds(5000));
    while (h.source_store.owner(h.id, Role::source) != 0 && !deadline.passed()) ::poll(nullptr, 0, 5);
    EXPECT_EQ(h.source_state(), commit ? State::committed : State::aborted);
    EXPECT_EQ(h.board->source.running.load(), !commit);
    destination->guardian->let_go();
    EXPECT_EQ(h.destination_state(), State::prepared);  // in doubt, never discarded by itself
    const Settled settled = h.resolve();
    EXPECT_EQ(settled.outcome, commit ? Settled::Outcome::runs_there : Settled::Outcome::runs_here) << settled.sentence;
    h.expect_one_running(commit ? "after commit" : "before commit");
  }
}

TEST(Handover, AllStopMarksReachTheGuardian) {
  Hosts h;
  SourceHold source = h.hold();
  source.start(h.start_source());
  source.freeze(std::vector<StopMark>(5000, StopMark{1, 2, 3}));
  EXPECT_EQ(h.board->stop_marks.load(), 5000u);
  EXPECT_TRUE(source.abort("enough was seen"));
  h.expect_one_running("many marks");
}

/// Runs a whole migration in which `fault` happens; then settles as agents and `resolve` do.
void run_with_fault(const std::string& fault) {
  Hosts h;
  const std::string& point = fault;
  SourceHold source = h.hold(fault);
  DestinationAgent destination(h, fault);
  bool sure = false;
  try {
    source.start(h.start_source());
    source.freeze();
    destination.prepare();
    source.commit();
    destination.open();
    source.kill();
    destination.done();
    sure = true;
  } catch (const Error&) {
    try {
      if (!source.committed()) source.abort(point);
    } catch (const Error&) {
      // A later agent settles.
    }
    if (source.committed()) source.take_over();
    destination.guardian->let_go();
  }
  const Deadline deadline = Deadline::in(milliseconds(5000));
  while ((h.source_store.owner(h.id, Role::source) != 0 ||
          (h.destination_state() == State::receiving && h.destination_store.owner(h.id, Role::destination) != 0)) &&
         !deadline.passed()) {
    ::poll(nullptr, 0, 5);
  }
  if (!sure && h.source_store.peek(h.id, Role::source)) {
    const Settled settled = h.resolve();
    EXPECT_NE(settled.outcome, Settled::Outcome::in_doubt) << point << ": " << settled.sentence;
  }
  settle_local(h.destination_store, h.keeper, short_times(), h.events, *h.log);
  h.expect_one_running(point);
  EXPECT_TRUE(std::filesystem::exists(h.source_dir.path() + "/reached") ||
              std::filesystem::exists(h.destination_dir.path() + "/reached"))
      << point << " was not reached, which proves nothing";
}

TEST(Handover, AGuardianKilledAtEveryPoint) {
  for (const std::string_view point : fault_points()) {
    // Fake trees are not visited.
    if (point.find("inject-") != std::string_view::npos) continue;
    if (point.find("guardian") != std::string_view::npos) run_with_fault(std::string(point) + ":kill-self");
  }
}

TEST(Handover, AnySyncMayFailAfterTheRename) {
  for (const std::string_view point : fault_points()) {
    if (point.find("-journal.") == std::string_view::npos) continue;
    std::string fault = std::string(point) + ":sync-fails";
    // An abort needs a reason.
    if (point == "source-journal.aborted") fault += ",source-guardian.before-commit:fail";
    if (point == "destination-journal.aborted") fault += ",destination-guardian.finished:fail";
    run_with_fault(fault);
  }
}

/// As a receiver with --max-tasks asks for it: the answer to images of one task that has `threads` threads.
std::string prepared_with(uint64_t max_tasks, unsigned threads, Hosts& h) {
  DestinationAgent destination(h, "");
  img::pstree_entry task;
  task.set_pid(42), task.set_ppid(0), task.set_pgid(42), task.set_sid(42);
  for (unsigned i = 0; i < threads; ++i) task.add_threads(42 + i);
  ImageSet images;
  images.adopt("inventory.img", {std::byte{7}});
  images.put("pstree.img", magic::kPstree, task);
  try {
    destination.prepare(images, max_tasks);
  } catch (const Refusal& e) {
    destination.guardian->leave(destination.soon());
    return e.what();
  }
  destination.open();
  destination.done();
  return {};
}

TEST(Handover, MoreTasksThanAllowedAreRefusedBeforeAnythingIsMade) {
  for (const auto& [limit, threads] : {std::pair(0, 5000), std::pair(5000, 5000), std::pair(3, 3)}) {
    Hosts h;
    EXPECT_EQ(prepared_with(static_cast<uint64_t>(limit), static_cast<unsigned>(threads), h), "");
    EXPECT_TRUE(h.board->destination.made);
  }
  Hosts h;
  EXPECT_EQ(prepared_with(3, 4, h),
            "the tree has 1 task with 3 more threads, and the receiver takes 3 at most; receive with --max-tasks 4 if "
            "that is what it should have");
  EXPECT_FALSE(h.board->destination.made);
  EXPECT_EQ(h.destination_state(), State::aborted);
}

TEST(Handover, ALayoutOfMoreTasksThanAllowedIsRefused) {
  TreeLayout layout;
  for (pid_t pid = 42; pid < 45; ++pid)
    layout.tasks.push_back({.pid = pid, .ppid = pid == 42 ? 0 : 42, .pgid = 42, .sid = 42});
  for (const uint64_t most : {3, 2}) {
    Hosts h;
    DestinationAgent destination(h, "");
    destination.start(most);
    GuardianRequest request;
    request.set_layout(true);
    destination.guardian->send(request);
    const std::string text = whole(layout).SerializeAsString();
    const auto bytes = as_bytes_of(text);
    destination.guardian->socket().send_blob({bytes.begin(), bytes.end()});
    if (most == 3) {
      EXPECT_TRUE(destination.guardian->await(destination.soon()).targets());
      receive_room(destination.guardian->socket(), destination.soon());
    } else {
      EXPECT_THROW(destination.guardian->await(destination.soon()), Refusal);
    }
    EXPECT_EQ(h.board->destination.made.load(), most == 3);
    destination.guardian->leave(destination.soon());
  }
}

TEST(Handover, TheCopysMemoryIsToldAtAnyTime) {
  Hosts h;
  DestinationAgent destination(h, "");
  GuardianRequest request;
  request.set_memory(true);
  destination.start();
  EXPECT_EQ(destination.guardian->ask(request, destination.soon()).memory_bytes(), 0u);
  destination.prepare();
  EXPECT_EQ(destination.guardian->ask(request, destination.soon()).memory_bytes(), 3u << 20);
  destination.open();
  EXPECT_EQ(destination.guardian->ask(request, destination.soon()).memory_bytes(), 0u);
  destination.done();
}

TEST(Handover, AFailingRestoreLeavesTheSourceRunning) {
  Hosts h;
  h.board->finish_fails = true;
  SourceHold source = h.hold();
  DestinationAgent destination(h, "");
  source.start(h.start_source());
  source.freeze();
  EXPECT_THROW(destination.prepare(), Error);
  EXPECT_TRUE(source.abort("restore failed"));
  EXPECT_EQ(h.destination_state(), State::aborted);
  tell_outcome(h.source_store, h.id, h.ask(), *h.log);
  EXPECT_TRUE(h.source_store.peek(h.id, Role::source)->peer_settled);
  h.expect_one_running("restore failed");
}

TEST(Resolve, OrdersOfAnOlderEpochAreRefused) {
  Hosts h;
  {
    JournalEntry e;
    e.id = h.id;
    e.role = Role::destination;
    e.peer_epoch = 2;
    Journal j = h.destination_store.create(e);
    j.step(State::prepared, kOwn);
  }
  h.board->destination.exists = true;
  EXPECT_THROW(h.sessions.open(h.id, 1, kPeer), StaleEpoch);
  EXPECT_THROW(h.sessions.discard(h.id, 1, kPeer, ""), StaleEpoch);
  EXPECT_EQ(h.destination_state(), State::prepared);
  EXPECT_FALSE(h.board->destination.ever_ran);
  EXPECT_EQ(h.sessions.open(h.id, 2, kPeer)->state, State::gate_open);
  EXPECT_TRUE(h.board->destination.running);
}

TEST(Resolve, OnlyTheSessionsPeerMaySettleIt) {
  Hosts h;
  {
    JournalEntry e;
    e.id = h.id;
    e.role = Role::destination;
    e.peer_name = "a.example";
    Journal j = h.destination_store.create(e);
    j.step(State::prepared, kOwn);
  }
  h.board->destination.exists = true;
  wire::Message m;
  m.set_session(h.id.data(), h.id.size());
  m.set_epoch(9);
  m.mutable_resolve()->set_want(Resolve::OPEN);
  EXPECT_THROW(answer_resolve(h.sessions, m, "b.example"), Refusal);
  EXPECT_EQ(h.destination_state(), State::prepared);
  EXPECT_EQ(answer_resolve(h.sessions, m, "a.example").state(), Answer::GATE_OPEN);
}

/// A committed source whose agents are gone.
void commit_and_forget(Hosts& h) {
  JournalEntry e;
  e.id = h.id;
  e.role = Role::source;
  Journal j = h.source_store.create(e);
  j.step(State::frozen, kOwn);
  j.step(State::committed, kOwn);
  h.board->source.running = false;
}

TEST(Resolve, TheDestinationsAnswerDecides) {
  struct Row {
    Answer::State state;
    bool rebooted;
    Settled::Outcome outcome;
    State left;
  };
  for (const Row& row : {Row{Answer::UNKNOWN, false, Settled::Outcome::in_doubt, State::committed},
                         Row{Answer::RECEIVING, false, Settled::Outcome::in_doubt, State::committed},
                         Row{Answer::PREPARED, false, Settled::Outcome::in_doubt, State::committed},
                         Row{Answer::ABORTED, false, Settled::Outcome::runs_here, State::aborted},
                         Row{Answer::GATE_OPEN, false, Settled::Outcome::runs_there, State::done},
                         Row{Answer::DONE, false, Settled::Outcome::runs_there, State::done},
                         Row{Answer::GATE_OPEN, true, Settled::Outcome::in_doubt, State::committed}}) {
    Hosts h;
    commit_and_forget(h);
    std::optional<Journal> j = h.source_store.take_over(h.id, Role::source);
    const Settled settled = settle_source(
        *j, h.keeper,
        [&](const SessionId&, uint64_t, Resolve::Want) {
          Answer a;
          a.set_state(row.state);
          a.set_rebooted(row.rebooted);
          return a;
        },
        *h.log);
    EXPECT_EQ(settled.outcome, row.outcome) << row.state;
    EXPECT_EQ(j->state(), row.left) << row.state;
    EXPECT_EQ(h.board->source.running.load(), row.outcome == Settled::Outcome::runs_here) << row.state;
  }
}

TEST(Resolve, AnUnreachableDestinationIsInDoubt) {
  Hosts h;
  commit_and_forget(h);
  std::optional<Journal> j = h.source_store.take_over(h.id, Role::source);
  const Settled settled = settle_source(
      *j, h.keeper, [](const SessionId&, uint64_t, Resolve::Want) -> Answer { throw Error("cable cut"); }, *h.log);
  EXPECT_EQ(settled.outcome, Settled::Outcome::in_doubt);
  EXPECT_FALSE(h.board->source.running);
}

TEST(Resolve, ARebootedFrozenSourceGivesItsCopyUp) {
  Hosts h;
  {
    JournalEntry e;
    e.id = h.id;
    e.role = Role::source;
    Journal j = h.source_store.create(e);
    j.step(State::frozen, kOwn);
    JournalEntry d;
    d.id = h.id;
    d.role = Role::destination;
    Journal k = h.destination_store.create(d);
    k.step(State::prepared, kOwn);
  }
  h.board->source.exists = h.board->source.running = false;
  h.board->destination.exists = true;
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::runs_there);
  EXPECT_TRUE(h.board->destination.running);
}

TEST(Resolve, ACopyThatDiedBehindItsGateNeverRan) {
  Hosts h;
  commit_and_forget(h);
  {
    JournalEntry d;
    d.id = h.id;
    d.role = Role::destination;
    Journal k = h.destination_store.create(d);
    k.step(State::prepared, kOwn);
  }
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::runs_here);
  EXPECT_EQ(h.destination_state(), State::aborted);
  EXPECT_TRUE(h.board->source.running);
}

TEST(Resolve, ARebootAfterTheGateOpenedIsForTheOperator) {
  Hosts h;
  commit_and_forget(h);
  {
    JournalEntry d;
    d.id = h.id;
    d.role = Role::destination;
    Journal k = h.destination_store.create(d);
    k.step(State::prepared, kOwn);
    k.step(State::gate_open, kPeer);
    k.update([](JournalEntry& e) { e.boot_id = "another boot"; });
  }
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::in_doubt);
  EXPECT_FALSE(h.board->source.running);
}

constexpr WatchTimes kQuick{milliseconds(5), milliseconds(20), milliseconds(2000)};

Answer answer_of(Answer::State state) {
  Answer answer;
  answer.set_state(state);
  return answer;
}

TEST(Watch, AsksUntilTheDestinationAnswers) {
  Hosts h;
  commit_and_forget(h);
  int asked = 0;
  const auto asker = [&](const std::string&) -> AskDestination {
    return [&](const SessionId&, uint64_t, Resolve::Want) {
      if (++asked <= 3) {
        // Whoever comes in between may settle it: the lock is free.
        EXPECT_EQ(in_child([&] { return h.source_store.owner(h.id, Role::source) == 0 ? 0 : 1; }), 0);
        throw Error("cable cut");
      }
      return answer_of(Answer::GATE_OPEN);
    };
  };
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, kQuick, h.events, *h.log);
  EXPECT_GT(asked, 3);
  EXPECT_EQ(h.source_state(), State::done);
  EXPECT_FALSE(h.board->source.exists);
  EXPECT_TRUE(h.source_store.peek(h.id, Role::source)->peer_settled);
}

TEST(Watch, OpensTheGateThatNobodyElseOpens) {
  Hosts h;
  commit_and_forget(h);
  {
    JournalEntry d;
    d.id = h.id;
    d.role = Role::destination;
    Journal k = h.destination_store.create(d);
    k.step(State::prepared, kOwn);
  }
  h.board->destination.exists = h.board->destination.in_our_cgroup = true;
  settle_until_done(
      h.source_store, h.keeper, h.id, Role::source, short_times(), [&](const std::string&) { return h.ask(); }, kQuick,
      h.events, *h.log);
  EXPECT_EQ(h.source_state(), State::done);
  EXPECT_EQ(h.destination_state(), State::done);
  h.expect_one_running("watch");
  EXPECT_TRUE(h.board->destination.running);
}

TEST(Watch, TellsTheDestinationOfAnAbort) {
  Hosts h;
  {
    JournalEntry e;
    e.id = h.id;
    e.role = Role::source;
    e.peer_settled = false;
    Journal j = h.source_store.create(e);
    j.step(State::frozen, kOwn);  // and then all died
    JournalEntry d;
    d.id = h.id;
    d.role = Role::destination;
    Journal k = h.destination_store.create(d);
    k.step(State::prepared, kOwn);
  }
  h.board->source.running = false;
  h.board->destination.exists = h.board->destination.in_our_cgroup = true;
  int asked = 0;
  const auto asker = [&](const std::string&) -> AskDestination {
    if (++asked <= 2) return [](const SessionId&, uint64_t, Resolve::Want) -> Answer { throw Error("nobody listens"); };
    return h.ask();
  };
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, kQuick, h.events, *h.log);
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(h.source_state(), State::aborted);
  EXPECT_EQ(h.destination_state(), State::aborted);
  h.expect_one_running("told");
  EXPECT_TRUE(h.board->source.running);
}

TEST(Watch, EndsWhenTheOperatorHasSettledIt) {
  Hosts h;
  commit_and_forget(h);
  std::thread operator_;
  const auto asker = [&](const std::string&) -> AskDestination {
    return [&](const SessionId&, uint64_t, Resolve::Want) -> Answer {
      if (!operator_.joinable()) {
        operator_ = std::thread([&] {
          // A process of its own: locks are a process's.
          in_child([&] {
            JournalStore store(h.source_dir.path());
            std::optional<Journal> j = store.take_over(h.id, Role::source);
            j->step_with(State::aborted, kOperator, "", [](JournalEntry& e) { e.peer_settled = true; });
            return 0;
          });
        });
      }
      throw Error("cable cut");
    };
  };
  // Longer than the test may take: only the change of the journal ends the pause.
  const WatchTimes slow{std::chrono::minutes(10), std::chrono::minutes(10), milliseconds(2000)};
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, slow, h.events, *h.log);
  operator_.join();
  EXPECT_EQ(h.source_state(), State::aborted);
}

TEST(Watch, LeavesToTheOperatorWhatOnlyHeKnows) {
  Hosts h;
  commit_and_forget(h);
  int asked = 0;
  const auto asker = [&](const std::string&) -> AskDestination {
    return [&](const SessionId&, uint64_t epoch, Resolve::Want want) {
      EXPECT_EQ(want, Resolve::ASK);
      EXPECT_EQ(epoch, 1u) << "nothing was taken over";
      Answer answer = answer_of(Answer::GATE_OPEN);
      answer.set_rebooted(true);
      // In the end the operator speaks.
      if (++asked == 4) {
        std::optional<Journal> j = h.source_store.take_over(h.id, Role::source, false);
        j->step_with(State::done, kOperator, "", [](JournalEntry& e) { e.peer_settled = true; });
      }
      return answer;
    };
  };
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, kQuick, h.events, *h.log);
  EXPECT_EQ(asked, 4);
  EXPECT_FALSE(h.board->source.running);
}

TEST(LinkWords, SayWhatTheLinkIs) {
  LinkOptions link;
  link.tls = TlsConfig{.cacert = "/a=b", .cert = "/c", .key = "/k", .crl = "/r"};
  link.tls_name = "beta";
  std::vector<std::string> words = words_of(link);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  const LinkOptions back = link_from_words(argv);
  EXPECT_EQ(back.tls->cacert, "/a=b");
  EXPECT_EQ(back.tls->cert, "/c");
  EXPECT_EQ(back.tls->key, "/k");
  EXPECT_EQ(back.tls->crl, "/r");
  EXPECT_EQ(back.tls_name, "beta");
  EXPECT_FALSE(back.insecure);
  std::string plain = "insecure=anywhere", odd = "password=x";
  char* one[] = {plain.data()};
  EXPECT_TRUE(link_from_words(one).insecure_forced);
  EXPECT_FALSE(link_from_words(one).tls);
  one[0] = odd.data();
  EXPECT_THROW(link_from_words(one), Refusal);
}

}  // namespace
}  // namespace migrate

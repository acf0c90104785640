// Two hosts of fake trees whose guardians are real processes, for the tests of the hand-over.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <thread>

#include "core/image/magic.h"
#include "images/pstree.pb.h"
#include "migrate/session/handover/destination_sessions.h"
#include "migrate/session/handover/settle.h"
#include "migrate/session/handover/settle_later.h"
#include "migrate/session/handover/source_hold.h"
#include "migrate/session/handover/watch.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/layout_wire.h"
#include "migrate/session/wire/link_words.h"
#include "migrate/session/wire/reserve_wire.h"
#include "tests/session/fake_trees.h"
#include "tests/session/in_child.h"
#include "tests/temp_dir.h"

namespace migrate {

using std::chrono::milliseconds;
using wire::Answer;
using wire::GuardianReply;
using wire::GuardianRequest;
using wire::Resolve;

class NoEvents final : public Events {
  void event(std::string_view, const std::string&, EventFields) override {}
  void progress(std::string_view, const std::string&, EventFields) override {}
};

inline Timeouts short_times() {
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
  /// The journal that a side left after these steps. `change` comes before the first of them.
  Journal left(Role role, std::initializer_list<State> steps, const std::function<void(JournalEntry&)>& change = {}) {
    JournalEntry e;
    e.id = id;
    e.role = role;
    if (change) change(e);
    Journal j = (role == Role::source ? source_store : destination_store).create(std::move(e));
    for (const State step : steps) j.step(step, step == State::gate_open ? kPeer : kOwn);
    return j;
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
      tell_outcome(source_store, keeper, id, ask(), *log);
      return {Settled::Outcome::runs_here, ""};
    }
    std::optional<Journal> journal = source_store.take_over(id, Role::source);
    if (!journal) return {Settled::Outcome::in_doubt, "owned"};
    Settled settled = settle_source(*journal, keeper, ask(), *log);
    journal.reset();
    tell_outcome(source_store, keeper, id, ask(), *log);
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
    guardian->socket().send_blob(whole(layout));
    guardian->await(soon());
    receive_room(guardian->socket(), soon());
    request.set_reserve(true);
    guardian->send(request);
    guardian->socket().send_blob(to_wire(std::span<const PageReserve>()).front());
    guardian->await(soon());
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

/// A committed source whose agents are gone.
inline void commit_and_forget(Hosts& h) {
  h.left(Role::source, {State::frozen, State::committed});
  h.board->source.running = false;
}

}  // namespace migrate

#include "migrate/session/journal/journal.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/base/error.h"
#include "core/base/procfs.h"
#include "migrate/session/journal/trees.h"
#include "tests/session/in_child.h"
#include "tests/session/scoped_env.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

constexpr State kAll[] = {State::preparing, State::frozen,    State::committed, State::receiving,
                          State::prepared,  State::gate_open, State::aborted,   State::done};

JournalEntry source_entry() {
  JournalEntry e;
  e.id = new_session_id();
  e.role = Role::source;
  e.label = "pid:1 (x)";
  e.peer = "host:1";
  return e;
}

TEST(States, NothingLeavesAFinalState) {
  for (const Role role : {Role::source, Role::destination}) {
    for (const State from : {State::aborted, State::done}) {
      for (const State to : kAll) EXPECT_FALSE(legal_step(role, from, to, static_cast<Authority>(15)));
    }
  }
}

TEST(States, OneSideAloneNeverDecidesAfterCommitOrPrepared) {
  for (const State to : kAll) {
    EXPECT_FALSE(legal_step(Role::source, State::committed, to, kOwn));
    EXPECT_FALSE(legal_step(Role::destination, State::prepared, to, kOwn));
  }
  EXPECT_TRUE(legal_step(Role::destination, State::prepared, State::gate_open, kPeer));
  EXPECT_FALSE(legal_step(Role::source, State::preparing, State::committed, kOwn));
  // Whether all pages are here is not the source's to say; and what runs there without them is not to run here again.
  EXPECT_TRUE(legal_step(Role::destination, State::gate_open, State::whole, kOwn));
  EXPECT_FALSE(legal_step(Role::destination, State::gate_open, State::whole, kPeer));
  EXPECT_FALSE(legal_step(Role::destination, State::whole, State::lost, static_cast<Authority>(15)));
  EXPECT_FALSE(legal_step(Role::source, State::committed, State::lost, kPeer));
  EXPECT_FALSE(legal_step(Role::source, State::prepared, State::gate_open, kPeer));
}

TEST(States, NamesGoBothWays) {
  for (const State s : kAll) EXPECT_EQ(state_named(name_of(s)), s);
  EXPECT_FALSE(state_named("frozen"));
}

/// Who reads that a tree is dead lets its copy run.
TEST(TaskId, WithoutDescriptorsNobodyIsTakenForDead) {
  const std::optional<TaskId> self = TaskId::of(::getpid());
  ASSERT_TRUE(self && self->lives());
  EXPECT_EQ(in_child([&] {
              const rlimit none{0, 0};
              ::setrlimit(RLIMIT_NOFILE, &none);
              int thrown = 0;
              try {
                self->lives();
              } catch (const Error& e) {
                thrown += e.code() == EMFILE ? 1 : 0;
              }
              try {
                TaskId::of(self->pid);
              } catch (const Error& e) {
                thrown += e.code() == EMFILE ? 1 : 0;
              }
              return thrown;
            }),
            2);
  EXPECT_FALSE(TaskId::of(1 << 22));
}

TEST(SessionId, Hex) {
  const SessionId id = new_session_id();
  EXPECT_EQ(session_from_hex(to_hex(id)), id);
  EXPECT_FALSE(session_from_hex(to_hex(id) + "0"));
  EXPECT_FALSE(session_from_hex("../../../../../../etc/passwd0000"));
}

TEST(Journal, KeepsEveryField) {
  JournalEntry e = source_entry();
  e.epoch = 7;
  e.peer_epoch = 3;
  e.boot_id = "boot";
  e.peer_name = "b.example";
  e.tls_name = "c.example";
  e.tasks = {{12, 34}, {56, 78}};
  e.init = TaskId{9, 10};
  e.cgroup = FreezerCgroup::Record{false, {"/sys/fs/cgroup/x"}, {{12, "/sys/fs/cgroup"}}};
  e.socket_folders = {"/run", "/with space"};
  e.lazy_cgroups = {"/sys/fs/cgroup/" + lazy_cgroup_mark(e.id) + "0"};
  e.feed = FeedSettings{.bandwidth_limit = 12'000'000,
                        .compression = *parse_compression("zstd:7"),
                        .codecs = {.lz4 = false, .zstd = true},
                        .streams = 5};
  e.peer_settled = false;
  e.reason = "because \"of\"\n\xff";
  const JournalEntry back = JournalEntry::from_json(e.to_json(), "x");
  EXPECT_EQ(back.id, e.id);
  EXPECT_EQ(back.epoch, 7u);
  EXPECT_EQ(back.peer_epoch, 3u);
  EXPECT_EQ(back.peer_name, "b.example");
  EXPECT_EQ(back.tls_name, "c.example");
  EXPECT_EQ(back.tasks, e.tasks);
  EXPECT_EQ(back.init, e.init);
  EXPECT_EQ(back.socket_folders, e.socket_folders);
  EXPECT_EQ(back.lazy_cgroups, e.lazy_cgroups);
  EXPECT_EQ(back.cgroup->folders, e.cgroup->folders);
  EXPECT_EQ(back.cgroup->came_from, e.cgroup->came_from);
  EXPECT_FALSE(back.cgroup->v2);
  EXPECT_FALSE(back.peer_settled);
  ASSERT_TRUE(back.feed);
  EXPECT_EQ(back.feed->bandwidth_limit, 12'000'000u);
  EXPECT_EQ(text_of(back.feed->compression), "zstd:7");
  EXPECT_TRUE(back.feed->codecs.zstd && !back.feed->codecs.lz4);
  EXPECT_EQ(back.feed->streams, 5);
}

TEST(Journal, FeedsThatNobodyCouldHaveWantedAreCorrupt) {
  JournalEntry e = source_entry();
  e.feed = FeedSettings{.bandwidth_limit = 12'345'678,
                        .compression = *parse_compression("zstd:7"),
                        .codecs = {true, true},
                        .streams = 33};
  const std::string good = e.to_json();
  EXPECT_NO_THROW(JournalEntry::from_json(good, "x"));
  const std::pair<const char*, const char*> changes[] = {{"12345678", "1"},      {"12345678", "1099511627777"},
                                                         {"12345678", "-1"},     {"12345678", "1e6"},
                                                         {"zstd:7", "zstd:20"},  {"zstd:7", "brotli"},
                                                         {"\"lz4\"", "\"lz5\""}, {"\"lz4\"", "4"},
                                                         {": 33", ": 0"},        {": 33", ": 64"},
                                                         {": 33", ": -1"}};
  for (const auto& [from, to] : changes) {
    std::string bad = good;
    bad.replace(bad.find(from), std::string_view(from).size(), to);
    EXPECT_THROW(JournalEntry::from_json(bad, "x"), Corrupt) << to;
  }
}

TEST(Journal, DamagedTextIsCorrupt) {
  const std::string good = source_entry().to_json();
  for (size_t cut = 0; cut + 3 < good.size(); cut += 7) {
    EXPECT_THROW(JournalEntry::from_json(good.substr(0, cut), "x"), Corrupt) << cut;
  }
}

TEST(Journal, PidsThatNameManyOrOthersAreCorrupt) {
  JournalEntry e = source_entry();
  e.tasks = {{12345, 34}};
  e.cgroup = FreezerCgroup::Record{false, {"/sys/fs/cgroup/x"}, {{12345, "/sys/fs/cgroup"}}};
  const std::string good = e.to_json();
  const size_t first = good.find("12345"), second = good.find("12345", first + 1);
  EXPECT_NO_THROW(JournalEntry::from_json(good, "x"));
  for (const size_t at : {first, second}) {
    // kill(2) takes 0 and -1 for many; 2^32 + 1 was cut to 1.
    for (const char* pid : {"0", "-1", "4294967297", "1.5", "5000000", "\"7\""}) {
      std::string bad = good;
      bad.replace(at, 5, pid);
      EXPECT_THROW(JournalEntry::from_json(bad, "x"), Corrupt) << pid;
    }
  }
}

// Who settles a session removes them.
TEST(Journal, CgroupsOfALazyHostThatAreNotTheSessionsAreCorrupt) {
  JournalEntry e = source_entry();
  const std::string good = "/sys/fs/cgroup/" + lazy_cgroup_mark(e.id) + "0";
  e.lazy_cgroups = {good, good};
  EXPECT_NO_THROW(JournalEntry::from_json(e.to_json(), "x"));
  for (const std::string& bad :
       {std::string(), std::string("/"), std::string("/sys/fs/cgroup/system.slice"), good.substr(1),
        good + "/system.slice", "/sys/fs/cgroup/" + lazy_cgroup_mark(new_session_id()) + "0"}) {
    e.lazy_cgroups = {good, bad};
    EXPECT_THROW(JournalEntry::from_json(e.to_json(), "x"), Corrupt) << bad;
  }
  e.lazy_cgroups.assign(65, good);
  EXPECT_THROW(JournalEntry::from_json(e.to_json(), "x"), Corrupt);
}

TEST(Journal, StepsAreDurableAndChecked) {
  const TempDir dir;
  JournalStore store(dir.path());
  struct stat st {};
  ASSERT_EQ(::stat(dir.path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
  Journal j = store.create(source_entry());
  EXPECT_EQ(j.state(), State::preparing);
  EXPECT_THROW(j.step(State::committed, kOwn), Refusal);
  j.step(State::frozen, kOwn, "held");
  EXPECT_EQ(store.peek(j.id(), Role::source)->state, State::frozen);
  EXPECT_EQ(store.peek(j.id(), Role::source)->reason, "held");
  EXPECT_FALSE(store.peek(j.id(), Role::destination));
  EXPECT_FALSE(std::filesystem::exists(dir.path() + "/" + to_hex(j.id()) + ".source.journal.new"));
}

TEST(Journal, AFailedWriteLeavesTheOldState) {
  const TempDir dir;
  JournalStore store(dir.path());
  Journal j = store.create(source_entry());
  j.step(State::frozen, kOwn);
  std::filesystem::create_directory(dir.path() + "/" + to_hex(j.id()) + ".source.journal.new");
  EXPECT_THROW(j.step(State::committed, kOwn), Error);
  EXPECT_EQ(j.state(), State::frozen);
  EXPECT_EQ(store.peek(j.id(), Role::source)->state, State::frozen);
}

TEST(Journal, AnAbortThatCannotBeWrittenIsToldByTheName) {
  const TempDir dir;
  JournalStore store(dir.path());
  Journal j = store.create(source_entry());
  j.step(State::frozen, kOwn);
  const std::string in_the_way = dir.path() + "/" + to_hex(j.id()) + ".source.journal.new";
  std::filesystem::create_directory(in_the_way);
  EXPECT_TRUE(store.abort_by_name(j.id()));
  EXPECT_TRUE(store.abort_by_name(j.id())) << "twice";
  const std::optional<JournalEntry> seen = store.peek(j.id(), Role::source);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->state, State::aborted);
  EXPECT_GT(seen->epoch, j.entry().epoch);
  EXPECT_THROW(store.create(j.entry()), Refusal) << "its id was used";
  const JournalEntry before = j.entry();
  { const Journal gone = std::move(j); }
  // There is room again: whoever settles it writes it after all.
  std::filesystem::remove(in_the_way);
  std::optional<Journal> later = store.take_over(before.id, Role::source);
  ASSERT_TRUE(later);
  EXPECT_EQ(later->state(), State::aborted);
  later->update([](JournalEntry& e) { e.peer_settled = true; });
  ASSERT_EQ(store.list().size(), 1u);
  EXPECT_EQ(store.list()[0].state, State::aborted);
  EXPECT_TRUE(store.list()[0].peer_settled);
  EXPECT_FALSE(std::filesystem::exists(dir.path() + "/" + to_hex(before.id) + ".source.aborted"));
}

TEST(Journal, AnAbortToldByTheNameIsForgottenWhenBothKnow) {
  const TempDir dir;
  JournalStore store(dir.path());
  const JournalEntry before = [&] {
    Journal j = store.create(source_entry());
    j.step(State::frozen, kOwn);
    return j.entry();
  }();
  std::filesystem::create_directory(dir.path() + "/" + to_hex(before.id) + ".source.journal.new");
  EXPECT_THROW(store.note_peer_settled(before.id), Error);
  EXPECT_EQ(store.peek(before.id, Role::source)->state, State::frozen) << "only an abort may be forgotten";
  EXPECT_TRUE(store.abort_by_name(before.id));
  EXPECT_NO_THROW(store.note_peer_settled(before.id));
  EXPECT_FALSE(store.peek(before.id, Role::source));
}

/// A journal on its way to `last`, whose folder cannot be synced after the rename that says so.
struct Unsynced {
  Role role;
  std::vector<std::pair<State, Authority>> way;
  const char* point;
};

const Unsynced kUnsynced[] = {
    {Role::source, {{State::frozen, kOwn}}, "source-journal.frozen"},
    {Role::source, {{State::frozen, kOwn}, {State::committed, kOwn}}, "source-journal.committed"},
    {Role::source, {{State::frozen, kOwn}, {State::committed, kOwn}, {State::done, kPeer}}, "source-journal.done"},
    {Role::source, {{State::frozen, kOwn}, {State::aborted, kOwn}}, "source-journal.aborted"},
    {Role::destination, {{State::prepared, kOwn}}, "destination-journal.prepared"},
    {Role::destination, {{State::prepared, kOwn}, {State::gate_open, kPeer}}, "destination-journal.gate-open"},
    {Role::destination,
     {{State::prepared, kOwn}, {State::gate_open, kPeer}, {State::done, kPeer}},
     "destination-journal.done"},
    {Role::destination, {{State::aborted, kOwn}}, "destination-journal.aborted"},
};

TEST(Journal, AStepThatEverybodyCanReadIsTakenAlsoIfItCannotBeSynced) {
  for (const Unsynced& c : kUnsynced) {
    const TempDir dir;
    JournalStore store(dir.path());
    JournalEntry e = source_entry();
    e.role = c.role;
    Journal j = store.create(e);
    const ScopedEnv fault("MIGRATE_FAULT", std::string(c.point) + ":sync-fails");
    for (const auto& [state, authority] : c.way) {
      const bool last = state == c.way.back().first;
      EXPECT_TRUE(j.durable()) << c.point;
      EXPECT_NO_THROW(j.step(state, authority)) << c.point;
      EXPECT_EQ(j.state(), state) << c.point;
      EXPECT_EQ(store.peek(j.id(), c.role)->state, j.state()) << c.point << ": memory and disk are apart";
      EXPECT_EQ(j.durable(), !last) << c.point;
    }
    EXPECT_THROW(j.demand_durable(), Error) << c.point;
    ::unsetenv("MIGRATE_FAULT");
    j.update([](JournalEntry& x) { x.peer_settled = true; });
    EXPECT_TRUE(j.durable()) << c.point << ": a later write makes up for it";
    EXPECT_FALSE(std::filesystem::exists(dir.path() + "/" + to_hex(j.id()) + "." + std::string(name_of(c.role)) +
                                         ".journal.new"));
  }
}

TEST(Journal, ASessionThatCannotBeSyncedDoesNotBegin) {
  for (const Role role : {Role::source, Role::destination}) {
    const TempDir dir;
    JournalStore store(dir.path());
    JournalEntry e = source_entry();
    e.role = role;
    const bool source = role == Role::source;
    {
      const ScopedEnv fault(
          "MIGRATE_FAULT", source ? "source-journal.preparing:sync-fails" : "destination-journal.receiving:sync-fails");
      EXPECT_THROW(store.create(e), Error);
    }
    EXPECT_FALSE(store.peek(e.id, role));
    EXPECT_TRUE(store.create(e).durable());
  }
}

TEST(Journal, TheWholeSessionIdNamesItsCgroup) {
  SessionId a = new_session_id(), b = a;
  b.back() ^= std::byte{1};
  EXPECT_NE(cgroup_name(a, Role::source), cgroup_name(b, Role::source));
  EXPECT_NE(cgroup_name(a, Role::destination), cgroup_name(b, Role::destination));
  JournalEntry first, second;
  first.id = a;
  second.id = b;
  first.role = second.role = Role::destination;
  EXPECT_NE(first.hidden_mark(), second.hidden_mark());
}

TEST(Journal, ASessionIsUsedOnce) {
  const TempDir dir;
  JournalStore store(dir.path());
  const JournalEntry e = source_entry();
  {
    Journal j = store.create(e);
    j.step(State::aborted, kOwn);
  }
  EXPECT_THROW(store.create(e), Refusal);
}

TEST(Journal, OneOwnerAndTakingOverRaisesTheEpoch) {
  const TempDir dir;
  JournalStore store(dir.path());
  const JournalEntry e = source_entry();
  {
    Journal j = store.create(e);
    EXPECT_EQ(in_child([&] {
                JournalStore other(dir.path());
                if (other.owner(e.id, Role::source) != ::getppid()) return 1;
                return other.take_over(e.id, Role::source) ? 2 : 0;
              }),
              0);
    // A child that was forked while we own it does not keep the lock.
    EXPECT_EQ(j.entry().epoch, 1u);
  }
  EXPECT_EQ(in_child([&] {
              JournalStore other(dir.path());
              auto j = other.take_over(e.id, Role::source);
              return j && j->entry().epoch == 2 ? 0 : 1;
            }),
            0);
  EXPECT_EQ(store.owner(e.id, Role::source), 0);
  EXPECT_EQ(store.peek(e.id, Role::source)->epoch, 2u);
}

TEST(Journal, ATreeIsMovedOnceAtATime) {
  const TempDir dir;
  JournalStore store(dir.path());
  JournalEntry e = source_entry();
  e.tasks = {*TaskId::of(::getpid())};
  std::optional<Journal> j = store.create(e);
  JournalEntry second = source_entry();
  second.tasks = e.tasks;
  const auto refused = [&] {
    return in_child([&] {
      JournalStore other(dir.path());
      try {
        other.create(second);
      } catch (const Refusal&) {
        return 0;
      }
      return 1;
    });
  };
  EXPECT_EQ(refused(), 0);
  j->step(State::frozen, kOwn);
  j.reset();  // the owner died: the tree is still held
  EXPECT_EQ(refused(), 0);
  j = store.take_over(e.id, Role::source);
  j->step(State::aborted, kOwn);
  j.reset();
  EXPECT_EQ(refused(), 1);
}

TEST(Journal, AFolderOfAnotherModeIsProtected) {
  const TempDir dir;
  std::filesystem::permissions(dir.path(), std::filesystem::perms::all);
  JournalStore store(dir.path() + "/a/b");
  struct stat st {};
  ASSERT_EQ(::stat((dir.path() + "/a/b").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
}

TEST(Journal, AFolderWithOtherThingsIsNotClosedToOthers) {
  const TempDir dir;
  ASSERT_EQ(::mkdir((dir.path() + "/somebodys").c_str(), 0700), 0);
  const auto mode = [&] {
    struct stat st {};
    EXPECT_EQ(::stat(dir.path().c_str(), &st), 0);
    return st.st_mode & 07777;
  };
  EXPECT_NO_THROW(JournalStore(dir.path()));  // it is closed already
  ASSERT_EQ(::chmod(dir.path().c_str(), 01777), 0);
  EXPECT_THROW(JournalStore(dir.path()), Refusal);
  EXPECT_EQ(mode(), 01777u);
  ASSERT_EQ(::rmdir((dir.path() + "/somebodys").c_str()), 0);
  { JournalStore(dir.path()).create(source_entry()); }
  ASSERT_EQ(::chmod(dir.path().c_str(), 0755), 0);
  EXPECT_NO_THROW(JournalStore(dir.path()));  // nothing but what is ours
  EXPECT_EQ(mode(), 0700u);
}

TEST(Journal, ListNamesDamagedOnes) {
  const TempDir dir;
  JournalStore store(dir.path());
  { Journal j = store.create(source_entry()); }
  std::ofstream(dir.path() + "/x.source.journal") << "{";
  std::vector<std::string> damaged;
  EXPECT_EQ(store.list(&damaged).size(), 1u);
  EXPECT_EQ(damaged.size(), 1u);
}

TEST(TaskId, LivesUntilItDies) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::pause();
    ::_exit(0);
  }
  const std::optional<TaskId> task = TaskId::of(pid);
  ASSERT_TRUE(task);
  EXPECT_TRUE(task->lives());
  EXPECT_FALSE((TaskId{pid, task->start_time + 2}).lives());
  ::kill(pid, SIGKILL);
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
  EXPECT_FALSE(task->lives());  // a zombie
  ::waitpid(pid, nullptr, 0);
  EXPECT_FALSE(task->lives());
}

TEST(TaskId, IsTheSameInEveryTimeNamespace) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const TaskId self = *TaskId::of(::getpid());
  for (const char* offset : {"boottime 5 0", "boottime 5 555000000", "boottime 7 4000001", "boottime -3 996000000"}) {
    EXPECT_EQ(in_child([&] {
                if (::unshare(CLONE_NEWTIME) != 0) return 3;
                std::ofstream("/proc/self/timens_offsets") << offset;
                return in_child([&] {
                  // Of ours the offset shows, unless it was not taken.
                  if (static_cast<int64_t>(ProcDir(self.pid).stat().start_time - self.start_time) / 90 == 0) return 2;
                  const std::optional<TaskId> seen = TaskId::of(self.pid);
                  return seen && seen->is(self) && self.lives() ? 0 : 1;
                });
              }),
              0)
        << offset;
  }
}

TEST(TreeKeeper, ANumberThatIsAnothersByNowIsSpared) {
  const LoggerPtr log = null_logger();
  const std::unique_ptr<TreeKeeper> keeper = cgroup_keeper(*log);
  const auto sleeper = [] {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::pause();
    ::_exit(0);
  };
  const pid_t bystander = sleeper(), init = sleeper();
  JournalEntry e = source_entry();
  e.role = Role::destination;
  e.boot_id = boot_id();
  e.tasks = {*TaskId::of(bystander)};
  e.tasks[0].start_time += 2;
  e.init = e.tasks[0];
  keeper->discard(e);
  EXPECT_EQ(::waitpid(bystander, nullptr, WNOHANG), 0) << "it was killed for another task that had its number";
  e.init = TaskId::of(init);
  keeper->discard(e);
  int status = 0;
  EXPECT_EQ(::waitpid(init, &status, WNOHANG), init);
  EXPECT_TRUE(WIFSIGNALED(status));
  ::kill(bystander, SIGKILL);
  ::waitpid(bystander, nullptr, 0);
}

}  // namespace
}  // namespace migrate

// Locks on files that both hosts see: given up by the frozen tree for its copy, and taken again by whoever lets it run
// on, when the copy is gone.
#include "migrate/session/journal/lost_locks.h"
#include "tests/session/handover_hosts.h"

namespace migrate {
namespace {

constexpr WatchTimes kQuick{milliseconds(5), milliseconds(20), milliseconds(2000)};
constexpr uint64_t kDevice = 7;

std::vector<HeldLock> some_locks(Hosts& h) {
  h.board->lock_device = kDevice;
  return FakeHeldTree(*h.board, h.source_dir.path()).locks();
}

/// All died when the copy was complete, or had just been.
void leave_frozen(Hosts& h) {
  h.left(Role::source, {State::frozen}, [&](JournalEntry& e) {
    e.locks = some_locks(h);
    e.tasks = {*TaskId::of(::getpid())};
    e.peer_settled = false;
  });
  h.left(Role::destination, {State::prepared});
  h.board->source.running = false;
  h.board->source.in_our_cgroup = h.board->without_lock = true;
  h.board->destination.exists = h.board->destination.in_our_cgroup = true;
}

TEST(HeldLocks, AreInTheJournal) {
  Hosts h;
  const HeldLock want = some_locks(h).front();
  h.left(Role::source, {State::frozen}, [&](JournalEntry& e) { e.locks = some_locks(h); });
  const std::vector<HeldLock> read = h.source_store.peek(h.id, Role::source)->locks;
  ASSERT_EQ(read.size(), 1u);
  const HeldLock& is = read.front();
  EXPECT_EQ(is.number, want.number);
  EXPECT_EQ(is.pid, want.pid);
  EXPECT_EQ(is.fd, want.fd);
  EXPECT_EQ(is.lock.kind, want.lock.kind);
  EXPECT_EQ(is.lock.type, want.lock.type);
  EXPECT_EQ(is.lock.start, want.lock.start);
  EXPECT_EQ(is.lock.length, want.lock.length);
  EXPECT_EQ(is.device, want.device);
  EXPECT_EQ(is.inode, want.inode);
  EXPECT_EQ(is.path, want.path);
}

TEST(HeldLocks, AreGivenUpWhereBothHostsSeeTheFile) {
  for (const uint64_t shared : {kDevice, kDevice + 1}) {
    Hosts h;
    h.board->lock_device = kDevice;
    SourceHold source = h.hold();
    source.start(h.start_source());
    source.freeze({}, {shared});
    EXPECT_EQ(source.gave_up_locks(), shared == kDevice);
    EXPECT_EQ(h.board->without_lock.load(), shared == kDevice);
    EXPECT_EQ(h.source_store.peek(h.id, Role::source)->locks.size(), shared == kDevice ? 1u : 0u);
    EXPECT_TRUE(source.abort("enough was seen"));
    EXPECT_FALSE(h.board->without_lock);
    h.expect_one_running("aborted");
  }
}

TEST(HeldLocks, AWatchTakesThemWhenTheCopyIsGone) {
  Hosts h;
  leave_frozen(h);
  int asked = 0;
  const auto asker = [&](const std::string&) -> AskDestination {
    if (++asked <= 2) return [](const SessionId&, uint64_t, Resolve::Want) -> Answer { throw Error("nobody listens"); };
    EXPECT_FALSE(h.board->source.running && asked == 3) << "it ran before the copy had given them up";
    return h.ask();
  };
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, kQuick, h.events, *h.log);
  EXPECT_GE(asked, 3);
  EXPECT_EQ(h.source_state(), State::aborted);
  EXPECT_EQ(h.destination_state(), State::aborted);
  EXPECT_FALSE(h.board->without_lock);
  EXPECT_FALSE(h.board->two_have_lock);
  h.expect_one_running("told first");
}

/// By the guardian at the agent's word, by the watch, and by who finds an abort whose tree nobody has let go.
TEST(HeldLocks, WhatSomebodyElseHasByThenIsToldInTheJournal) {
  const auto expect_told = [](const Hosts& h, const char* who) {
    EXPECT_EQ(h.source_store.peek(h.id, Role::source)->lost_locks, "the fake runs on without its lock") << who;
    EXPECT_NE(but_for_locks(*h.source_store.peek(h.id, Role::source)).find("without its lock"), std::string::npos);
    h.expect_one_running(who);
  };
  {
    Hosts h;
    h.board->lock_device = kDevice;
    h.board->lock_is_anothers = true;
    SourceHold source = h.hold();
    source.start(h.start_source());
    source.freeze({}, {kDevice});
    EXPECT_TRUE(source.abort("enough was seen"));
    expect_told(h, "guardian");
  }
  for (const bool aborted : {false, true}) {
    Hosts h;
    leave_frozen(h);
    h.board->lock_is_anothers = true;
    if (aborted) h.source_store.take_over(h.id, Role::source)->step(State::aborted, kOwn);
    settle_until_done(
        h.source_store, h.keeper, h.id, Role::source, short_times(), [&](const std::string&) { return h.ask(); },
        kQuick, h.events, *h.log);
    expect_told(h, aborted ? "watch, of an abort" : "watch");
  }
}

TEST(HeldLocks, ALongListIsCut) {
  Hosts h;
  Journal journal = h.left(Role::source, {State::frozen, State::aborted});
  note_lost_locks(journal, std::vector<std::string>(4000, "one"), *h.log);
  EXPECT_TRUE(journal.entry().lost_locks.ends_with("; and 3992 more"));
  EXPECT_LT(journal.entry().lost_locks.size(), 100u);
}

/// It cannot wait for ever for a host that may be gone.
TEST(HeldLocks, AWatchWaitsForTheDestinationForSomeSeconds) {
  Hosts h;
  leave_frozen(h);
  bool ran = false;
  const auto asker = [&](const std::string&) -> AskDestination {
    ran = h.board->source.running;
    if (ran) return h.ask();
    return [](const SessionId&, uint64_t, Resolve::Want) -> Answer { throw Error("cable cut"); };
  };
  const WatchTimes patient{milliseconds(5), milliseconds(20), 3 * kReceiverBack};
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, patient, h.events, *h.log);
  EXPECT_TRUE(ran);
  EXPECT_FALSE(h.board->without_lock);
  h.expect_one_running("out of reach");
}

/// The copy is the only one left: it must not be told to go.
TEST(HeldLocks, OfATreeThatIsGoneTheCopyKeepsThem) {
  Hosts h;
  leave_frozen(h);
  h.board->source.exists = h.board->source.in_our_cgroup = false;
  settle_until_done(
      h.source_store, h.keeper, h.id, Role::source, short_times(), [&](const std::string&) { return h.ask(); }, kQuick,
      h.events, *h.log);
  EXPECT_EQ(h.source_state(), State::done);
  h.expect_one_running("the copy");
  EXPECT_TRUE(h.board->destination.running);
}

TEST(HeldLocks, OthersLeaveItToTheWatch) {
  Hosts h;
  leave_frozen(h);
  settle_local(h.source_store, h.keeper, short_times(), h.events, *h.log);
  EXPECT_EQ(h.source_state(), State::frozen);
  EXPECT_FALSE(h.board->source.running);
  // Who has seen to it that they are free does not.
  free_locks_there(h.source_store, h.keeper, *h.source_store.peek(h.id, Role::source), h.ask(), *h.log);
  EXPECT_FALSE(h.board->destination.exists);
  settle_local(h.source_store, h.keeper, short_times(), h.events, *h.log, true);
  EXPECT_EQ(h.source_state(), State::aborted);
  EXPECT_FALSE(h.board->without_lock);
  EXPECT_FALSE(h.board->two_have_lock);
  h.expect_one_running("freed, and settled");
}

}  // namespace
}  // namespace migrate

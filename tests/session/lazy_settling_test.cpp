// What a lazy host writes when its guardian is gone, and when it may leave.
#include "migrate/session/lazy/lazy_settling.h"

#include "tests/session/handover_hosts.h"

namespace migrate {
namespace {

void be_lazy(JournalEntry& e) { e.lazy = true; }

bool settle(Hosts& h, const std::string& lost = "", const std::string& given_up = "") {
  return settle_without_guardian(h.destination_store, h.keeper, h.id, {.lost = lost, .given_up = given_up});
}

TEST(LazySettling, ItIsWholeAndRuns) {
  Hosts h;
  h.left(Role::destination, {State::prepared, State::gate_open}, be_lazy);
  h.board->destination.exists = h.board->destination.in_our_cgroup = true;  // whoever journaled that thawed nothing
  EXPECT_TRUE(settle(h));
  EXPECT_EQ(h.destination_state(), State::whole);
  EXPECT_TRUE(h.board->destination.running);
  EXPECT_FALSE(h.board->destination.in_our_cgroup);
  EXPECT_TRUE(settle(h));
}

TEST(LazySettling, ACopyThatIsDeadNeedsNoPages) {
  Hosts h;
  h.left(Role::destination, {State::prepared, State::gate_open}, be_lazy);
  EXPECT_TRUE(settle(h));
  EXPECT_EQ(h.destination_state(), State::whole);
  EXPECT_FALSE(h.board->destination.running);
}

TEST(LazySettling, WhatIsLostIsSaid) {
  Hosts h;
  h.left(Role::destination, {State::prepared, State::gate_open}, be_lazy);
  EXPECT_TRUE(settle(h, "the frozen tree is gone"));
  EXPECT_EQ(h.destination_state(), State::lost);
  EXPECT_EQ(h.destination_store.peek(h.id, Role::destination)->reason, "the frozen tree is gone");
}

TEST(LazySettling, WhatWasGivenUpIsSaid) {
  Hosts h;
  h.left(Role::destination, {State::prepared, State::gate_open}, be_lazy);
  EXPECT_TRUE(settle(h, "", "task 7"));
  EXPECT_EQ(h.destination_state(), State::whole);
  const auto entry = h.destination_store.peek(h.id, Role::destination);
  EXPECT_EQ(entry->given_up, "task 7");
  EXPECT_NE(entry->reason.find("but for pages of task 7"), std::string::npos) << entry->reason;
}

TEST(LazySettling, BehindItsGateItIsStayedWith) {
  Hosts h;
  h.left(Role::destination, {State::prepared}, be_lazy);
  h.board->destination.exists = true;
  EXPECT_FALSE(settle(h)) << "without its host nobody would open the gate";
  EXPECT_EQ(h.destination_state(), State::prepared);
  h.board->destination.exists = false;
  EXPECT_TRUE(settle(h));
  EXPECT_EQ(h.destination_state(), State::prepared) << "that is whoever looks";
}

TEST(LazySettling, WhoeverOwnsItWritesIt) {
  Hosts h;
  const Journal owned = h.left(Role::destination, {State::prepared, State::gate_open}, be_lazy);
  EXPECT_EQ(in_child([&] { return settle(h) ? 1 : 0; }), 0);
  EXPECT_EQ(h.destination_state(), State::gate_open);
}

TEST(LazySettling, NobodyAsksForASessionWithoutAJournal) {
  Hosts h;
  EXPECT_TRUE(settle(h));
}

}  // namespace
}  // namespace migrate

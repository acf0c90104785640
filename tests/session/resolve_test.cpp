// Sessions that agents and guardians left: what the other side says decides, or the operator.
#include <filesystem>
#include <fstream>

#include "tests/session/handover_hosts.h"

namespace migrate {
namespace {

TEST(Resolve, OrdersOfAnOlderEpochAreRefused) {
  Hosts h;
  h.left(Role::destination, {State::prepared}, [](JournalEntry& e) { e.peer_epoch = 2; });
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
  h.left(Role::destination, {State::prepared}, [](JournalEntry& e) { e.peer_name = "a.example"; });
  h.board->destination.exists = true;
  wire::Message m;
  m.set_session(h.id.data(), h.id.size());
  m.set_epoch(9);
  m.mutable_resolve()->set_want(Resolve::OPEN);
  EXPECT_THROW(answer_resolve(h.sessions, m, "b.example"), Refusal);
  EXPECT_EQ(h.destination_state(), State::prepared);
  EXPECT_EQ(answer_resolve(h.sessions, m, "a.example").state(), Answer::GATE_OPEN);
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

// The operator let the source's run while the destination, where it runs, could not be asked.
TEST(Resolve, TwoThatRunAreToldUntilOneHasEnded) {
  for (const bool source_ends : {true, false}) {
    Hosts h;
    commit_and_forget(h);
    h.left(Role::destination, {State::prepared, State::gate_open});
    h.board->destination.exists = h.board->destination.running = true;
    h.board->source.running = true;
    h.source_store.take_over(h.id, Role::source)->step_with(State::aborted, kOperator, "forced", [](JournalEntry& e) {
      e.peer_settled = false;
    });
    for (int i = 0; i < 2; ++i)
      EXPECT_EQ(tell_outcome(h.source_store, h.keeper, h.id, h.ask(), *h.log), Told::runs_there_too);
    EXPECT_TRUE(h.destination_store.peek(h.id, Role::destination)->source_runs);
    EXPECT_EQ(h.destination_state(), State::gate_open);
    auto& ends = source_ends ? h.board->source : h.board->destination;
    ends.running = ends.exists = false;
    EXPECT_EQ(tell_outcome(h.source_store, h.keeper, h.id, h.ask(), *h.log), Told::yes);
    EXPECT_TRUE(h.source_store.peek(h.id, Role::source)->peer_settled);
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
  h.left(Role::source, {State::frozen});
  h.left(Role::destination, {State::prepared});
  h.board->source.exists = h.board->source.running = false;
  h.board->destination.exists = true;
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::runs_there);
  EXPECT_TRUE(h.board->destination.running);
}

TEST(Resolve, ACopyThatDiedBehindItsGateNeverRan) {
  Hosts h;
  commit_and_forget(h);
  h.left(Role::destination, {State::prepared});
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::runs_here);
  EXPECT_EQ(h.destination_state(), State::aborted);
  EXPECT_TRUE(h.board->source.running);
}

TEST(Resolve, ARebootAfterTheGateOpenedIsForTheOperator) {
  Hosts h;
  commit_and_forget(h);
  h.left(Role::destination, {State::prepared, State::gate_open}).update([](JournalEntry& e) {
    e.boot_id = "another boot";
  });
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::in_doubt);
  EXPECT_FALSE(h.board->source.running);
}

// Its missing pages are in the frozen tree only: that must not be taken for whole.
TEST(Resolve, ALazyCopyThatWentWithItsHostIsForTheOperator) {
  Hosts h;
  commit_and_forget(h);
  h.left(Role::destination, {State::prepared, State::gate_open}).update([](JournalEntry& e) {
    e.lazy = true;
    e.boot_id = "another boot";
  });
  EXPECT_EQ(h.resolve().outcome, Settled::Outcome::in_doubt);
  EXPECT_EQ(h.destination_state(), State::lost);
  EXPECT_EQ(h.source_state(), State::committed);
  EXPECT_TRUE(h.board->source.exists);
}

TEST(Resolve, ALazyCopyWhoseHostsProcessesAreAllGoneIsLost) {
  for (const bool lives : {true, false}) {
    Hosts h;
    commit_and_forget(h);
    h.left(Role::destination, {State::prepared, State::gate_open}).update([](JournalEntry& e) { e.lazy = true; });
    h.board->destination.exists = h.board->destination.running = lives;
    EXPECT_EQ(h.resolve().outcome, Settled::Outcome::in_doubt) << lives;
    EXPECT_EQ(h.destination_state(), State::lost) << lives;
    EXPECT_TRUE(h.board->source.exists) << lives;
    EXPECT_FALSE(h.board->destination.exists) << lives;
  }
}

TEST(Resolve, PagesThatWentWithTheSourceAreLost) {
  for (const bool gone : {false, true}) {
    Hosts h;
    commit_and_forget(h);
    h.board->source.exists = !gone;
    std::optional<Journal> j = h.source_store.take_over(h.id, Role::source);
    bool told = false;
    const Settled settled = settle_source(
        *j, h.keeper,
        [&](const SessionId&, uint64_t, Resolve::Want want) {
          told |= want == Resolve::LOSE;
          Answer a;
          a.set_state(told ? Answer::LOST : Answer::GATE_OPEN);
          a.set_lazy(!told);
          return a;
        },
        *h.log);
    EXPECT_EQ(told, gone);
    EXPECT_EQ(settled.outcome, gone ? Settled::Outcome::lost : Settled::Outcome::in_doubt);
    EXPECT_EQ(j->state(), gone ? State::lost : State::committed);
  }
}

TEST(Resolve, TheSocketOfAGuardianThatWasKilledGoes) {
  for (const bool told : {false, true}) {
    Hosts h;
    const std::string path = h.destination_dir.path() + "/" + to_hex(h.id) + ".sock";
    {
      Journal j = h.left(Role::destination, {State::prepared, State::gate_open});
      if (told) j.step(State::done, kPeer);
      std::ofstream(path) << "as a socket that nobody listens on";
    }
    h.board->destination.exists = h.board->destination.running = true;
    if (!told) h.sessions.finish(h.id, 1);
    h.sessions.look(h.id);
    EXPECT_FALSE(std::filesystem::exists(path)) << told;
    EXPECT_EQ(h.destination_state(), State::done);
    EXPECT_TRUE(h.board->destination.running);
  }
}

}  // namespace
}  // namespace migrate

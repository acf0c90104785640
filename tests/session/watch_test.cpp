// The watch: settles what agents and guardians left as soon as the destination answers.
#include "tests/session/handover_hosts.h"

namespace migrate {
namespace {

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
  h.left(Role::destination, {State::prepared});
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
  h.left(Role::source, {State::frozen}, [](JournalEntry& e) { e.peer_settled = false; });  // and then all died
  h.left(Role::destination, {State::prepared});
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

/// The journal says that it runs on here: so it must, however often that fails, and whether the other side knows or
/// not.
TEST(Watch, TriesUntilTheTreeRunsOn) {
  for (const bool told : {true, false}) {
    Hosts h;
    JournalEntry e;
    e.id = h.id;
    e.role = Role::source;
    e.peer_settled = told;
    {
      Journal j = h.source_store.create(e);
      j.step(State::frozen, kOwn);
      j.step(State::aborted, kOwn);  // and then all died
    }
    h.board->source.running = false;
    h.board->source.in_our_cgroup = true;
    h.board->thaws_that_fail = 2;
    settle_until_done(
        h.source_store, h.keeper, h.id, Role::source, short_times(), [&](const std::string&) { return h.ask(); },
        kQuick, h.events, *h.log);
    EXPECT_TRUE(h.board->source.running) << told;
  }
}

TEST(Watch, EndsWhenTheOperatorHasSettledIt) {
  Hosts h;
  commit_and_forget(h);
  pid_t operator_ = 0;
  const auto asker = [&](const std::string&) -> AskDestination {
    return [&](const SessionId&, uint64_t, Resolve::Want) -> Answer {
      // A process of its own: locks are a process's.
      if (operator_ == 0 && (operator_ = ::fork()) == 0) {
        JournalStore store(h.source_dir.path());
        std::optional<Journal> j = store.take_over(h.id, Role::source);
        j->step_with(State::aborted, kOperator, "", [](JournalEntry& e) { e.peer_settled = true; });
        ::_exit(0);
      }
      throw Error("cable cut");
    };
  };
  // Longer than the test may take: only the change of the journal ends the pause.
  const WatchTimes slow{std::chrono::minutes(10), std::chrono::minutes(10), milliseconds(2000)};
  settle_until_done(h.source_store, h.keeper, h.id, Role::source, short_times(), asker, slow, h.events, *h.log);
  EXPECT_EQ(exit_of(operator_), 0);
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

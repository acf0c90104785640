// The source's guardian: tracer while the tree is stopped, then the one who may let it run, or be killed.
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <set>

#include "core/freeze/quick_moves.h"
#include "core/memory/huge_pages.h"
#include "migrate/session/guardian/guardian.h"
#include "migrate/session/guardian/guardian_common.h"
#include "migrate/session/journal/lost_locks.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/missing_wire.h"
#include "migrate/session/wire/tree_options_wire.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::GuardianReply;
using wire::GuardianRequest;

/// How long a freeze that was said to be near is prepared for.
constexpr milliseconds kNear{100};
/// That are handed over: the journal has them, and is bounded.
constexpr size_t kMostLocks = 4096;
/// For the huge pages of a tree that nobody tracks any more.
constexpr milliseconds kPuttingBack{2000};

class SourceGuardian {
 public:
  SourceGuardian(PacketSocket agent, const GuardianParts& parts, Logger& log)
      : agent_(std::move(agent)), parts_(parts), log_(log) {}

  int run() {
    try {
      if (!start()) return 0;
      while (serve_one()) {
      }
    } catch (const std::exception& e) {
      log_.debug("source guardian: {}", e.what());
      leave_to_watch(e.what());
    }
    leave_huge_pages_whole();
    return 0;
  }

 private:
  /// The first request makes the journal; nothing is touched before it is durable.
  bool start() {
    const std::optional<GuardianRequest> request = await_start(agent_);
    if (!request) return false;
    const GuardianRequest::StartSource& s = request->start_source();
    silence_ = milliseconds(s.silence_ms());
    bound_sends();
    try {
      JournalEntry entry = first_entry(Role::source, s);
      entry.tls_name = s.tls_name();
      start_ = s;
      static_cast<TreeOptions&>(dump_) = from_wire(s.dump().tree());
      dump_.root = Pid(s.dump().root());
      dump_.terminals = false;
      dump_.advice = Advice::sent;
      dump_.tracked = s.dump().tracked();
      dump_.foresee_mappings = true;
      dump_.lazy = dump_.lazy_shared = s.dump().lazy();
      dump_.mappings = MappingReader::shared();
      dump_.timeout = milliseconds(s.dump().timeout_ms());
      dump_.visit_hook = visit_fault_hook("source-guardian");
      const auto root = TaskId::of(dump_.root.get());
      if (!root) throw Refusal("there is no task " + std::to_string(dump_.root.get()), "look up its pid again");
      if (dump_.tracked) {
        dump_.earlier_sleeps = Dump::survey_sleeps(dump_.root);
        huge_pages_ = HugePages::of_tree(dump_.root);
        agent_process_ = agent_.open_peer();
      }
      entry.tasks = {*root};
      entry.peer_settled = false;
      if (s.has_feed()) {
        entry.feed = FeedSettings{.bandwidth_limit = s.feed().bandwidth_limit(),
                                  .compression = parse_compression(s.feed().compress()).value_or(Compression{}),
                                  .codecs = codecs_from_wire(s.feed().page_codecs()),
                                  .streams = std::clamp<int>(s.feed().streams(), 1, kMaxPageStreams - 1)};
      }
      store_.emplace(s.state_dir());
      journal_.emplace(store_->create(std::move(entry)));
    } catch (const Error& e) {
      reply_failed(agent_, e);
      return false;
    }
    fault_point("source-guardian.started");
    reply_started(agent_, journal_->entry().epoch);
    return true;
  }

  /// False when the session is settled or left to a later agent.
  bool serve_one() {
    GuardianRequest request;
    switch (agent_.receive(request, Deadline::in(silence_))) {
      case PacketSocket::Outcome::closed:
        // One that has hung up settles it by itself.
        if (!copy_has_locks() || !agent_lives()) leave_to_watch("its agent went away");
        return false;
      case PacketSocket::Outcome::timeout:
        leave_to_watch("its agent said nothing for too long");
        return false;
      case PacketSocket::Outcome::message:
        break;
    }
    switch (request.body_case()) {
      case GuardianRequest::kAlive:
        return true;
      case GuardianRequest::kFreeze:
        take_stop_marks();
        return freeze();
      case GuardianRequest::kFreezeIsNear:
        if (!quick_moves_ || !quick_moves_->extend(kNear)) quick_moves_.emplace(kNear);
        return true;
      case GuardianRequest::kLookAgain:
        if (tree_) tree_->look_again();
        return true;
      case GuardianRequest::kCommit:
        return commit();
      case GuardianRequest::kKill:
        return kill();
      case GuardianRequest::kAbort:
        return abort(request.abort());
      default:
        throw Error("serve", "an unknown request of the agent", EPROTO);
    }
  }

  void take_stop_marks() {
    wire::StopMarks marks;
    agent_.receive_blob(marks, Deadline::in(silence_));
    shared_devices_.insert(marks.shared_devices().begin(), marks.shared_devices().end());
    for (const auto& mark : marks.marks()) dump_.stops.push_back({mark.tid(), mark.stopped_at(), mark.let_go_at()});
  }

  bool freeze() {
    try {
      tree_ = parts_.held_tree(dump_);
      tree_->stop();
      fault_point("source-guardian.stopped");
      give_up_locks();
      record_ = tree_->hold(cgroup_name(journal_->id(), Role::source));
      fault_point("source-guardian.held");
      GuardianReply reply;
      reply.set_frozen(true);
      reply.set_stopping_since_ns(tree_->stopping_since_ns());
      reply.set_locks_given_up(!journal_->entry().locks.empty());
      agent_.send(reply);
      agent_.send_blob(encode_images(tree_->images()));
      send_sources(agent_, tree_->memories());
      if (dump_.lazy) agent_.send_blob(whole_to_wire(tree_->lazy_pages()));
      // The agent sends already; this must be durable only before the commit. Until then the cgroup's name tells a
      // later agent whose it is.
      journal_->step_with(State::frozen, kOwn, "held for the move", [this](JournalEntry& e) {
        e.tasks = tree_->tasks();
        e.cgroup = record_;
        e.left_behind = tree_->left_behind();
      });
      journal_->demand_durable();
      fault_point("source-guardian.frozen");
      quick_moves_.reset();
      return true;
    } catch (const Error& e) {
      settle_alone(e.what());
      reply_failed(agent_, e);
      return false;
    }
  }

  /// Those that are in the way of the copy's. The journal knows before, for whoever lets the tree run on.
  void give_up_locks() {
    std::vector<HeldLock> locks = tree_->locks();
    std::erase_if(locks, [this](const HeldLock& lock) { return !shared_devices_.contains(lock.device); });
    if (locks.empty()) return;
    if (locks.size() > kMostLocks)
      throw Refusal("the program has " + std::to_string(locks.size()) +
                        " locks on files that both hosts see, and at most " + std::to_string(kMostLocks) +
                        " are handed over",
                    "let it release some first");
    journal_->update([&](JournalEntry& e) {
      e.tasks = tree_->tasks();
      e.locks = locks;
    });
    tree_->give_up_locks(locks);
    fault_point("source-guardian.locks-given-up");
  }

  bool commit() {
    try {
      fault_point("source-guardian.before-commit");
      tree_->check();
      journal_->step(State::committed, kOwn, "the destination is ready");
    } catch (const Error& e) {
      // With locks the agent gives up the copy first, and takes the journal over.
      if (!copy_has_locks()) settle_alone(e.what());
      reply_failed(agent_, e);
      return false;
    }
    // Forward, even if a power failure might take it back: that would take the tree, too, and FROZEN is durable.
    warn_unless_durable(*journal_, log_);
    fault_point("source-guardian.committed");
    GuardianReply reply;
    reply.set_committed(true);
    agent_.send(reply);
    return true;
  }

  bool kill() {
    if (journal_->state() != State::committed) throw Error("kill", "a tree that is not committed", EPROTO);
    fault_point("source-guardian.before-kill");
    parts_.keeper->kill(journal_->entry());
    journal_->step(State::done, kPeer, "it runs at the destination");
    fault_point("source-guardian.killed");
    GuardianReply reply;
    reply.set_killed(true);
    agent_.send(reply);
    return false;
  }

  bool abort(const std::string& reason) {
    settle_alone(reason);
    GuardianReply reply;
    reply.set_aborted(journal_->state() == State::aborted);
    agent_.send(reply);
    return false;
  }

  /// The tree should run on only when the copy has given them up, of which we cannot hear.
  bool copy_has_locks() const {
    return journal_ && journal_->state() == State::frozen && !journal_->entry().locks.empty();
  }

  bool agent_lives() const {
    const Fd process = agent_.open_peer();
    pollfd p{process.get(), POLLIN, 0};
    return process && ::poll(&p, 1, 0) == 0;
  }

  /// There is no agent that could give up the copy first.
  void leave_to_watch(const std::string& reason) {
    if (!copy_has_locks() || !parts_.watch) return settle_alone(reason);
    try {
      watch_ = parts_.watch(start_, journal_->id());
      log_.debug("session {} is left to a watch: {}", to_hex(journal_->id()), reason);
    } catch (const Error& e) {
      log_.warn("starting a watch: {}", e.what());
      settle_alone(reason);
    }
  }

  /// Not committed: the tree runs on, whatever else fails. Committed: stays frozen for a later agent.
  void settle_alone(const std::string& reason) {
    if (!journal_ || journal_->state() == State::committed || is_final(journal_->state())) return;
    try {
      journal_->step_with(State::aborted, kOwn, reason, [this](JournalEntry& e) {
        ++e.epoch;
        if (!record_.folders.empty()) e.cgroup = record_;
      });
    } catch (const std::exception& e) {
      const bool named = store_->abort_by_name(journal_->id());
      log_.error("the abort of session {} could not be written ({}){}", to_hex(journal_->id()), e.what(),
                 named ? "" : "; the session is forgotten");
    }
    // The destination is told in any case; then it is durable there.
    warn_unless_durable(*journal_, log_);
    std::vector<std::string> lost;
    try {
      if (tree_) lost = tree_->run_on();
    } catch (const std::exception& e) {
      log_.error("letting the tree run on: {}", e.what());
      lost = parts_.keeper->run_on(journal_->entry());
    }
    note_lost_locks(*journal_, lost, log_);
    tree_.reset();
  }

  /// Tracking splits huge pages. The agent puts them back, unless it is killed before: a process of its own waits for
  /// its end, since the agent waits for ours.
  void leave_huge_pages_whole() {
    if (huge_pages_.empty() || !journal_ || journal_->state() != State::aborted) return;
    journal_.reset();
    store_.reset();
    if (::fork() != 0) return;
    const Deadline deadline = Deadline::in(silence_);
    agent_ = PacketSocket(Fd());
    pollfd p{agent_process_.get(), POLLIN, 0};
    while (agent_process_ && ::poll(&p, 1, deadline.poll_timeout()) <= 0 && !deadline.passed()) {
    }
    huge_pages_.put_back(kPuttingBack);
    ::_exit(0);
  }

  /// A stopped agent must not keep us, and with us a frozen tree, in a send for ever.
  void bound_sends() {
    const timeval limit{silence_.count() / 1000, (silence_.count() % 1000) * 1000};
    ::setsockopt(agent_.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  }

  PacketSocket agent_;
  const GuardianParts& parts_;
  Logger& log_;
  milliseconds silence_{30'000};
  GuardianRequest::StartSource start_;
  DumpOptions dump_;
  std::set<uint64_t> shared_devices_;
  std::optional<JournalStore> store_;
  std::optional<Journal> journal_;
  std::unique_ptr<HeldTree> tree_;
  FreezerCgroup::Record record_;
  std::optional<QuickMoves> quick_moves_;  ///< before the freeze
  HugePages huge_pages_;                   ///< of the tree before it was tracked
  std::shared_ptr<void> watch_;            ///< which waits for our end
  Fd agent_process_;                       ///< pidfd; none if it has ended
};

}  // namespace

int serve_source_guardian(PacketSocket agent, const GuardianParts& parts, Logger& log) {
  return SourceGuardian(std::move(agent), parts, log).run();
}

}  // namespace migrate

#include "migrate/session/handover/settle_later.h"

#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/base/deadline.h"
#include "core/base/fd.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::Answer;
using wire::Resolve;

/// Sleeps until somebody else changes a journal in the folder, or the time is over.
class FolderSleep {
 public:
  explicit FolderSleep(const std::string& folder) : notes_(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) {
    // Without it (no instance is left, say) we only notice later.
    if (notes_)
      ::inotify_add_watch(notes_.get(), folder.c_str(), IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF | IN_ONLYDIR);
  }
  void drain() {
    std::array<char, 4096> events;
    while (notes_ && ::read(notes_.get(), events.data(), events.size()) > 0) {
    }
  }
  /// True if something changed.
  bool sleep(const Deadline& until) {
    pollfd p{notes_ ? notes_.get() : -1, POLLIN, 0};
    return ::poll(&p, 1, until.poll_timeout()) > 0;
  }

 private:
  Fd notes_;
};

class LaterSettler {
 public:
  LaterSettler(JournalStore& store, TreeKeeper& keeper, const SessionId& id, Role role, Timeouts timeouts,
               const std::function<AskDestination(const std::string&)>& asker, Events& events, Logger& log,
               const FeedDestination& feed)
      : store_(store),
        keeper_(keeper),
        id_(id),
        role_(role),
        timeouts_(timeouts),
        asker_(asker),
        events_(events),
        log_(log),
        feed_(feed) {}

  void run(const WatchTimes& times) {
    FolderSleep folder(store_.path());
    const Deadline telling = Deadline::in(times.telling);
    for (milliseconds pause = times.first;; pause = std::min(pause * 2, times.longest)) {
      if (settled()) return;
      if (std::exchange(fed_, false)) pause = times.first;  // it was there: a cut, no absence
      const std::optional<JournalEntry> left = store_.peek(id_, role_);
      const bool over = !left || (is_final(left->state) && (left->peer_settled || telling.passed()));
      // One that says how it ended may still have its tree frozen here.
      if (over && !(left && failed_)) return;
      folder.drain();  // our own changes
      for (const Deadline next = Deadline::in(pause); !next.passed() && !changed(*left);) {
        if (folder.sleep(next)) folder.drain();
      }
    }
  }

 private:
  /// One attempt; true if nothing is left to do.
  bool settled() {
    try {
      std::optional<JournalEntry> entry = store_.peek(id_, role_);
      if (!entry) return true;
      // Also where there is no way to ask (certificates that are gone, say) the tree stands no longer than that.
      free_locks_there(
          store_, keeper_, *entry,
          [&](const SessionId& id, uint64_t epoch, Resolve::Want want) { return asker_(entry->peer)(id, epoch, want); },
          log_);
      failed_ = !settle_session(store_, keeper_, *entry, timeouts_, events_, log_);
      if (failed_) return false;
      if (role_ == Role::destination) {
        // The source decides about what is PREPARED. While pages come somebody has to see that all are here.
        entry = store_.peek(id_, role_);
        return !entry || entry->state != State::gate_open || !entry->lazy;
      }
      entry = store_.peek(id_, role_);
      if (!entry || (is_final(entry->state) && entry->peer_settled)) return true;
      const AskDestination ask = asker_(entry->peer);
      if (!is_final(entry->state) && !settle_by_answer(*entry, ask)) return false;
      return tell_outcome(store_, keeper_, id_, ask, log_) == Told::yes;
    } catch (const std::exception& e) {
      log_.debug("session {}: {}", to_hex(id_), e.what());
      return false;
    }
  }

  /// The journal is ours only while there is somebody to settle it with: until then `migrate resolve` may have it.
  bool settle_by_answer(const JournalEntry& seen, const AskDestination& ask) {
    const Answer answer = ask(id_, seen.epoch, Resolve::ASK);
    if (answer.state() == Answer::UNKNOWN || answer.state() == Answer::RECEIVING) return false;
    if (answer.rebooted() && answer.state() != Answer::ABORTED) return false;  // for the operator
    std::optional<Journal> journal = store_.take_over(id_, role_);
    if (!journal) return false;
    Settled settled = settle_source(*journal, keeper_, ask, log_);
    if (settled.needs_pages && feed_) {
      fed_ = true;
      // The journal stays ours: nobody may let the tree run meanwhile. Whole when it returns.
      feed_(journal->entry());
      settled = settle_source(*journal, keeper_, ask, log_);
    }
    if (settled.outcome == Settled::Outcome::in_doubt) return false;
    events_.event("settled", "session " + to_hex(id_) + ": " + settled.sentence, {{"session", to_hex(id_)}});
    return true;
  }

  /// By somebody else, so that it has to be looked at again.
  bool changed(const JournalEntry& left) const {
    try {
      const std::optional<JournalEntry> now = store_.peek(id_, role_);
      return !now || now->state != left.state || now->peer_settled != left.peer_settled;
    } catch (const Error&) {
      return false;
    }
  }

  JournalStore& store_;
  TreeKeeper& keeper_;
  const SessionId id_;
  const Role role_;
  const Timeouts timeouts_;
  const std::function<AskDestination(const std::string&)>& asker_;
  Events& events_;
  Logger& log_;
  const FeedDestination& feed_;
  bool fed_ = false;     ///< the last attempt reached the destination
  bool failed_ = false;  ///< what this host could do alone
};

}  // namespace

void settle_until_done(JournalStore& store, TreeKeeper& keeper, const SessionId& id, Role role, Timeouts timeouts,
                       const std::function<AskDestination(const std::string&)>& asker, const WatchTimes& times,
                       Events& events, Logger& log, const FeedDestination& feed) {
  LaterSettler(store, keeper, id, role, timeouts, asker, events, log, feed).run(times);
}

}  // namespace migrate

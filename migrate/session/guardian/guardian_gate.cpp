// The gate opens, and what follows until nothing of the source is needed any more.
#include <utility>

#include "migrate/session/guardian/destination_guardian.h"
#include "migrate/session/guardian/guardian_common.h"
#include "migrate/session/guardian/huge_again.h"
#include "migrate/session/journal/received_copy.h"
#include "migrate/session/telling/fault.h"

namespace migrate {

using wire::GuardianReply;

/// Also repeated by a later agent, whose source did not hear the first answer.
bool DestinationGuardian::open(uint64_t peer_epoch) {
  if (peer_epoch < journal_->entry().peer_epoch) {
    throw Refusal("the source's order to open the gate of session " + to_hex(journal_->id()) + " is out of date",
                  "see `migrate resolve`");
  }
  bool whole = false;
  if (journal_->state() == State::prepared) {
    if (!parts_.keeper->lives(journal_->entry())) {
      discard(kTreeGone, "it died behind its gate");
      throw Error("the copy died behind its gate; it never ran");
    }
    whole = holds_all_pages();
    journal_->step_with(State::gate_open, kPeer, "the source committed",
                        [&](JournalEntry& e) { e.peer_epoch = peer_epoch; });
    // Whoever reads it will say that it runs here: so it must, whether it is durable or not.
    warn_unless_durable(*journal_, log_);
    thaw();
    fault_point("destination-guardian.gate-open");
  }
  if (journal_->state() != State::gate_open) throw Refusal("the session is over", "start a new one");
  GuardianReply reply;
  reply.set_opened(journal_->entry().tasks.empty() ? 0 : static_cast<uint32_t>(journal_->entry().tasks[0].pid));
  agent_->send(reply);
  try {
    parts_.keeper->leave_gate(journal_->entry());
  } catch (const Error& e) {
    log_.warn("leaving the gate's cgroup: {}", e.what());  // answered already, and the tree runs
  }
  if (whole) became_whole({});
  make_huge_again();
  return true;
}

/// Before the gate opens: those who hold its missing pages must be there. True: there are none.
bool DestinationGuardian::holds_all_pages() {
  if (!lazy_) return false;
  try {
    const LazyState now = lazy_->ask(Deadline::in(options_.timeout));
    if (now.end.lost.empty()) return now.missing == 0;
  } catch (const Error& e) {
    log_.error("the lazy host: {}", e.what());
  }
  discard(kTreeGone, "those who held its missing pages died; it never ran");
  throw Error("those who held the copy's missing pages died; it never ran");
}

/// From here on the copy is the program: nothing may discard it, also not a failure to open in the good way.
void DestinationGuardian::thaw() {
  RestoredTree* tree = tree_.release();
  try {
    fault_point("destination-guardian.gate-journaled");
    tree->open_gate();
  } catch (const std::exception& e) {
    log_.error("opening the gate: {}; thawing it", e.what());
    tree->leave_alone();
    parts_.keeper->open_gate(journal_->entry());
  }
}

/// The lazy host says that nothing is missing any more, or that what is will not come; or it is gone.
void DestinationGuardian::lazy_news() {
  std::optional<LazyState> now;
  bool killed = false;
  try {
    now = lazy_->news();
  } catch (const GuardianGone& e) {
    killed = true;
    now = LazyState{1, {.lost = e.what(), .given_up = {}}};
  }
  if (!now || (now->missing != 0 && now->end.lost.empty())) return;
  if (journal_->state() == State::gate_open && now->end.lost.empty()) return became_whole(now->end.given_up);
  if (journal_->state() == State::gate_open) return lose(now->end.lost, killed);
  // Behind its gate it waits for no page; that it is whole is asked for when the gate opens.
  if (!now->end.lost.empty()) discard(kTreeGone, now->end.lost);
}

void DestinationGuardian::became_whole(const std::string& given_up) {
  write_pages_end(*journal_, {.lost = {}, .given_up = given_up});
  warn_unless_durable(*journal_, log_);
  fault_point("destination-guardian.whole");
  end_lazy_host();
}

/// By a process that nobody waits for. Once; already here, since it is to be done also if we die before all is whole.
void DestinationGuardian::make_huge_again() {
  const PagesByMemory huge = std::exchange(huge_, {});
  if (huge.empty() || !parts_.huge_again) return;
  try {
    const std::string wait_in = journal_->entry().lazy ? store_->path() : "";
    parts_.huge_again(journal_->id(), huge_tasks(journal_->entry().tasks, huge), wait_in);
  } catch (const std::exception& e) {
    log_.warn("huge pages are not made again: {}", e.what());
  }
}

/// When all processes of the host were killed, what was missing reads as zeros: a program that goes on with that is
/// worse than none. Else whoever touches a lost page gets SIGBUS.
void DestinationGuardian::lose(const std::string& why, bool killed) {
  write_pages_end(*journal_, {.lost = why, .given_up = {}});
  if (killed) parts_.keeper->discard(journal_->entry());
  end_lazy_host();
}

void DestinationGuardian::end_lazy_host() {
  try {
    lazy_->settled();
  } catch (const GuardianGone&) {
  }
  lazy_.reset();
  tell_whole();
}

void DestinationGuardian::tell_whole() {
  if (!whole_wanted_ || !agent_ || journal_->state() == State::gate_open) return;
  whole_wanted_ = false;
  GuardianReply reply;
  if (journal_->state() == State::whole || journal_->state() == State::done) {
    reply.set_whole(true);
  } else {
    reply.mutable_failed()->set_sentence("pages are lost: " + journal_->entry().reason);
  }
  try {
    agent_->send(reply);
  } catch (const GuardianGone&) {
    // It asks the journal.
  }
}

bool DestinationGuardian::done() {
  if (lazy_ && journal_->state() == State::gate_open) throw Refusal("pages are missing", "wait until it is whole");
  if (journal_->state() == State::gate_open || journal_->state() == State::whole)
    journal_->step(State::done, kPeer, "the source tree is gone");
  GuardianReply reply;
  reply.set_done(true);
  agent_->send(reply);
  return false;
}

}  // namespace migrate

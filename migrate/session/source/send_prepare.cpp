// What the source agent does while the tree runs untouched: looking, connecting, comparing, starting the session.
#include <cmath>

#include "core/base/features.h"
#include "core/base/procfs.h"
#include "core/base/refusals.h"
#include "core/dump/preflight.h"
#include "core/memory/huge_pages.h"
#include "core/restore/restorable.h"
#include "migrate/session/handover/source_feed.h"
#include "migrate/session/handover/still_coming.h"
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/link_words.h"
#include "migrate/session/wire/missing_wire.h"
#include "migrate/session/wire/tree_options_wire.h"

namespace migrate {
namespace {

Pid parse_target(const std::string& target) {
  if (!target.starts_with("pid:")) {
    throw Refusal("\"" + target + "\" names no process tree", "write pid:N, for the task N and all its descendants");
  }
  char* end = nullptr;
  const long pid = std::strtol(target.c_str() + 4, &end, 10);
  if (*end != '\0' || pid <= 0 || pid > kMaxPid) throw Refusal("\"" + target + "\" holds no pid", "write pid:N");
  return Pid(static_cast<pid_t>(pid));
}

}  // namespace

SendSession::SendSession(const SendOptions& options, Events& events, InterruptWatch& interrupt, Logger& log)
    : options_(options),
      events_(events),
      interrupt_(interrupt),
      log_(log),
      target_(parse_target(options.target)),
      connector_(options.link),
      store_(options.state_dir),
      keeper_(cgroup_keeper(log)),
      hold_(store_, *keeper_, exec_guardian("guardian-source"), options.timeouts, log),
      ask_(ask_over(connector_, options.address, options.timeouts)),
      peer_(options, connector_, hold_, events, interrupt, log),
      questions_(options, peer_, target_, label_, events) {}

void SendSession::look_before_touching() {
  demand_capabilities();
  const std::optional<TaskId> root = TaskId::of(target_.get());
  if (!root) throw Refusal("there is no task " + std::to_string(target_.get()), "look up its pid again");
  if (const pid_t mover = store_.mover(*root); mover != 0)
    throw Refusal(options_.target + " is being moved already, by process " + std::to_string(mover),
                  "wait for that, or see `migrate resolve`");
  refuse_while_pages_come(options_.state_dir, target_);
  (void)collect_tree(target_);  // which refuses what is no program of its own
  Refusals refusals;
  refusals.ask([&] { check_supervisor(target_, options_.shell_job, options_.parent_may_notice); });
  static_cast<TreeOptions&>(dump_) = options_;
  dump_.root = target_;
  dump_.terminals = false;
  dump_.advice = Advice::sent;
  dump_.timeout = options_.timeouts.freeze;
  dump_.mappings = MappingReader::shared();
  refusals.ask([&] { Dump::preflight(dump_, log_); });
  refusals.demand_none();
  check_buildable(collect_tree(target_), false);  // of a tree whose sessions and namespaces are its own
  questions_.take_stock();
  label_ = options_.target + " (" + ProcDir(target_.get()).stat().comm + ")";
  plan_ = plan_memory({options_, target_, dump_, peer_, questions_, hold_, events_, log_});
}

void SendSession::compare_clocks() {
  clocks_ = estimate_clocks(peer_.sample_clocks(), tree_clock_offsets(target_), boottime_now_ns() - monotonic_now_ns());
  const double apart = static_cast<double>(clocks_.monotonic_ns - clocks_.at_destination_ns) / 1e9;
  events_.event("clocks",
                "the tree's clock is " + std::to_string(std::abs(apart)) +
                    (apart < 0 ? " s behind the destination's" : " s ahead of the destination's"),
                {{"ahead_s", apart}, {"uncertainty_us", clocks_.uncertainty_ns / 1000}});
}

void SendSession::begin() {
  wire::GuardianRequest::StartSource start;
  id_ = new_session_id();
  start.set_state_dir(options_.state_dir);
  start.set_session(to_hex(id_));
  start.set_peer(options_.address);
  start.set_tls_name(options_.link.tls_name);
  for (const std::string& word : words_of(options_.link)) start.add_link(word);
  start.set_label(label_);
  start.set_silence_ms(static_cast<uint32_t>(options_.timeouts.silence.count()));
  start.mutable_dump()->set_root(target_.get());
  to_wire(options_, *start.mutable_dump()->mutable_tree());
  start.mutable_dump()->set_tracked(plan_->visits());
  start.mutable_dump()->set_lazy(plan_->is_lazy());
  if (plan_->is_lazy()) {
    start.mutable_feed()->set_bandwidth_limit(options_.bandwidth_limit);
    start.mutable_feed()->set_compress(text_of(options_.compress));
    start.mutable_feed()->set_page_codecs(to_wire(peer_.codecs()));
    start.mutable_feed()->set_streams(fill_streams(options_.streams));
  }
  start.mutable_dump()->set_timeout_ms(static_cast<uint32_t>(dump_.timeout.count()));
  hold_.start(start);
  watch_.emplace(options_.state_dir, id_, Role::source, *hold_.death_fd(), options_.link);
  peer_.channel().set_session(id_, hold_.epoch());
  begun_ = true;
  Message message;
  wire::Begin* begin = message.mutable_begin();
  begin->set_label(label_);
  begin->set_precopy(plan_->tells_layouts());
  begin->set_lazy(plan_->is_lazy());
  begin->set_streams(static_cast<uint32_t>(options_.streams));
  begin->set_page_codecs(to_wire(peer_.codecs()));
  to_wire(options_, *begin->mutable_tree());
  begin->set_monotonic_ns(clocks_.monotonic_ns);
  begin->set_boottime_ns(clocks_.boottime_ns);
  begin->set_at_destination_ns(clocks_.at_destination_ns);
  peer_.channel().send(std::move(message));
  const wire::Begun begun = peer_.channel().expect(Message::kBegun, peer_.answer_by()).begun();
  peer_.open_streams(id_, begun);
  events_.event("begin", "session " + to_hex(id_), {{"session", to_hex(id_)}});
  fault_point("source-agent.begun");
}

/// As they are before anybody looks for what is written, which splits them.
void SendSession::tell_huge_pages() {
  if (!peer_.offers("huge-pages")) return;
  const PagesByMemory huge = HugePages::of_tree(target_).pages();
  if (huge.empty()) return;
  for (wire::Discards& part : to_wire(huge)) {
    Message message;
    *message.mutable_huge() = std::move(part);
    peer_.channel().send(std::move(message));
  }
}

}  // namespace migrate

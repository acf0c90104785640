// What the source agent does while the tree runs untouched: looking, connecting, comparing, starting the session.
#include <time.h>

#include <algorithm>

#include "core/base/procfs.h"
#include "core/base/refusals.h"
#include "core/dump/preflight.h"
#include "core/restore/restorable.h"
#include "migrate/session/source/send_session.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/greeting.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/stream_token.h"

namespace migrate {
namespace {

constexpr int kClockSamples = 12;

Pid parse_target(const std::string& target) {
  if (!target.starts_with("pid:")) {
    throw Refusal("\"" + target + "\" names no process tree", "write pid:N, for the task N and all its descendants");
  }
  char* end = nullptr;
  const long pid = std::strtol(target.c_str() + 4, &end, 10);
  if (*end != '\0' || pid <= 0 || pid > kMaxPid) throw Refusal("\"" + target + "\" holds no pid", "write pid:N");
  return Pid(static_cast<pid_t>(pid));
}

bool asks_nothing(const wire::Check& check) {
  return check.files_size() == 0 && check.made_size() == 0 && check.ports_size() == 0 && check.uids_size() == 0 &&
         check.gids_size() == 0 && check.privileges_size() == 0 && check.capabilities() == 0 &&
         check.strangers_size() == 0 && check.kernel_mappings_size() == 0 && !check.has_lowest_oom_score() &&
         !check.has_queued_signals();
}

}  // namespace

SendSession::SendSession(const SendOptions& options, Events& events, const InterruptWatch& interrupt, Logger& log)
    : options_(options),
      events_(events),
      interrupt_(interrupt),
      log_(log),
      target_(parse_target(options.target)),
      address_(parse_host_port(options.address)),
      connector_(options.link),
      store_(options.state_dir),
      keeper_(cgroup_keeper(log)),
      hold_(store_, *keeper_, exec_guardian("guardian-source"), options.timeouts, log),
      ask_(ask_over(connector_, options.address, options.timeouts)) {}

void SendSession::look_before_touching() {
  const std::optional<TaskId> root = TaskId::of(target_.get());
  if (!root) throw Refusal("there is no task " + std::to_string(target_.get()), "look up its pid again");
  if (const pid_t mover = store_.mover(*root); mover != 0)
    throw Refusal(options_.target + " is being moved already, by process " + std::to_string(mover),
                  "wait for that, or see `migrate resolve`");
  Refusals refusals;
  refusals.ask([&] { check_supervisor(target_, options_.shell_job, options_.parent_may_notice); });
  dump_.root = target_;
  dump_.shell_job = options_.shell_job;
  dump_.terminals = false;
  dump_.tcp_close = options_.tcp_close;
  dump_.timeout = options_.timeouts.freeze;
  dump_.mappings = MappingReader::shared();
  refusals.ask([&] { Dump::preflight(dump_, log_); });
  refusals.demand_none();
  check_buildable(collect_tree(target_), false);  // of a tree whose sessions and namespaces are its own
  inventory_ = take_inventory(target_, InventoryDepth::whole);
  label_ = options_.target + " (" + ProcDir(target_.get()).stat().comm + ")";
  choose_mode();
}

void SendSession::connect() {
  const Deadline deadline = Deadline::in(options_.timeouts.connect);
  channel_.emplace(connector_.connect(address_, deadline, &interrupt_.stop()));
  channel_->stream().set_stop(&interrupt_.stop());
  const auto [here, there] = greet(*channel_, deadline, options_.timeouts.answer);
  check_hello_version(there);
  agree_on_codecs(there);
  const auto& features = there.features();
  peer_reserves_ = std::find(features.begin(), features.end(), "reserve") != features.end();
  const std::vector<Feature> reasons = incompatibilities(here, there);
  if (!reasons.empty()) throw Refusal(reasons.front().found, reasons.front().remedy);
  events_.event("connect", "connected to " + channel_->stream().peer() + ", " + channel_->stream().description(),
                {{"peer", channel_->stream().peer()}, {"host", there.host()}, {"kernel", there.kernel()}});
  fault_point("source-agent.connected");
}

void SendSession::compare_clocks() {
  std::vector<ClockSample> samples;
  for (int i = 0; i < kClockSamples; ++i) {
    Message ping;
    ping.mutable_clock_ping()->set_number(static_cast<uint64_t>(i));
    ClockSample sample;
    sample.before_ns = monotonic_now_ns();
    channel_->send(std::move(ping));
    const Message pong = channel_->expect(Message::kClockPong, answer_by());
    sample.after_ns = monotonic_now_ns();
    sample.peer_ns = pong.clock_pong().monotonic_ns();
    samples.push_back(sample);
    const double round_trip = static_cast<double>(sample.after_ns - sample.before_ns) / 1e9;
    round_trip_seconds_ = i == 0 ? round_trip : std::min(round_trip_seconds_, round_trip);
  }
  clocks_ = estimate_clocks(samples, tree_clock_offsets(target_), boottime_now_ns() - monotonic_now_ns());
  const double apart = static_cast<double>(clocks_.monotonic_ns - clocks_.at_destination_ns) / 1e9;
  events_.event("clocks", "the tree's clock is " + std::to_string(apart) + " s ahead of the destination's",
                {{"ahead_s", apart}, {"uncertainty_us", clocks_.uncertainty_ns / 1000}});
}

std::vector<std::string> SendSession::ask(wire::Check& check) {
  if (asks_nothing(check)) return {};
  std::optional<FileProbes> probes;
  if (!options_.files_shared) probes.emplace(check);
  Message message;
  *message.mutable_check() = check;
  channel_->send(std::move(message));
  const wire::CheckReply reply = channel_->expect(Message::kCheckReply, answer_by()).check_reply();
  return {reply.refusals().begin(), reply.refusals().end()};
}

std::vector<std::string> SendSession::ask_twice(const std::function<wire::Check&(int)>& look) {
  constexpr int kTries = 10;
  std::vector<std::string> before;
  for (int tries = 1;; ++tries) {
    std::vector<std::string> reasons = ask(look(tries));
    const auto stays = [&](const std::string& r) { return std::ranges::find(before, r) != before.end(); };
    if (reasons.empty() || tries == kTries || std::ranges::any_of(reasons, stays)) return reasons;
    before = std::move(reasons);
  }
}

void SendSession::check_there() {
  const std::vector<std::string> refusals = ask_twice([this](int tries) -> wire::Check& {
    if (tries > 1) inventory_ = take_inventory(target_, InventoryDepth::whole);
    return inventory_.check;
  });
  Refusals all;
  for (const std::string& reason : refusals)
    all.ask([&] { throw Refusal("the destination cannot take " + label_ + ": " + reason, "nothing was touched"); });
  all.demand_none();
  // Most of what was written is on the disk before the tree stops, so that the rest is little.
  sync_files(inventory_.writable_files);
  events_.event("checks",
                "checked: " + std::to_string(inventory_.check.files_size()) + " files, " +
                    std::to_string(inventory_.check.ports_size()) + " ports, " +
                    std::to_string(inventory_.check.pids_size()) + " tasks",
                {{"files", int64_t{inventory_.check.files_size()}}, {"tasks", int64_t{inventory_.check.pids_size()}}});
  fault_point("source-agent.checked");
}

void SendSession::begin() {
  wire::GuardianRequest::StartSource start;
  id_ = new_session_id();
  start.set_state_dir(options_.state_dir);
  start.set_session(to_hex(id_));
  start.set_peer(options_.address);
  start.set_label(label_);
  start.set_silence_ms(static_cast<uint32_t>(options_.timeouts.silence.count()));
  start.mutable_dump()->set_root(target_.get());
  start.mutable_dump()->set_shell_job(options_.shell_job);
  start.mutable_dump()->set_tcp_close(options_.tcp_close);
  start.mutable_dump()->set_tracked(precopy_);
  start.mutable_dump()->set_timeout_ms(static_cast<uint32_t>(dump_.timeout.count()));
  hold_.start(start);
  watch_.emplace(options_.state_dir, id_, Role::source, *hold_.death_fd(), options_.link);
  channel_->set_session(id_, hold_.epoch());
  begun_ = true;
  Message message;
  wire::Begin* begin = message.mutable_begin();
  begin->set_label(label_);
  begin->set_precopy(precopy_ || peer_reserves_);
  begin->set_streams(static_cast<uint32_t>(options_.streams));
  begin->set_page_codecs(to_wire(codecs_));
  begin->set_shell_job(options_.shell_job);
  begin->set_tcp_close(options_.tcp_close);
  begin->set_monotonic_ns(clocks_.monotonic_ns);
  begin->set_boottime_ns(clocks_.boottime_ns);
  begin->set_at_destination_ns(clocks_.at_destination_ns);
  channel_->send(std::move(message));
  const wire::Begun begun = channel_->expect(Message::kBegun, answer_by()).begun();
  if (begun.stream_tokens_size() < options_.streams) throw Corrupt("a message of the peer", "tokens are missing");
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < options_.streams; ++i) {
    const Deadline deadline = Deadline::in(options_.timeouts.connect);
    std::unique_ptr<Stream> stream =
        connector_.connect(address_, deadline, &interrupt_.stop(), encode_stream_token(begun.stream_tokens(i)));
    send_page_preface(*stream, {id_, static_cast<uint16_t>(i), static_cast<uint16_t>(options_.streams)}, deadline);
    streams.push_back(std::move(stream));
  }
  sender_.emplace(std::move(streams));
  set_up_streams();
  events_.event("begin", "session " + to_hex(id_), {{"session", to_hex(id_)}});
  fault_point("source-agent.begun");
}

}  // namespace migrate

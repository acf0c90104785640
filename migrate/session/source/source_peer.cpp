#include "migrate/session/source/source_peer.h"

#include <poll.h>

#include <algorithm>

#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/greeting.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/session_streams.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kHeartbeat{500};
constexpr int kClockSamples = 12;

}  // namespace

SourcePeer::SourcePeer(const SendOptions& options, const Connector& connector, SourceHold& hold, Events& events,
                       const InterruptWatch& interrupt, Logger& log)
    : options_(options),
      connector_(connector),
      hold_(hold),
      events_(events),
      interrupt_(interrupt),
      log_(log),
      address_(parse_host_port(options.address)) {}

void SourcePeer::connect() {
  const Deadline deadline = Deadline::in(options_.timeouts.connect);
  channel_ = std::make_unique<ControlChannel>(connector_.connect(address_, deadline, &interrupt_.stop()));
  channel_->stream().set_stop(&interrupt_.stop());
  const auto [here, there] = greet(*channel_, deadline, options_.timeouts.answer);
  check_hello_version(there);
  agree_on_codecs(there);
  features_.assign(there.features().begin(), there.features().end());
  const std::vector<Feature> reasons = incompatibilities(here, there);
  if (!reasons.empty()) throw Refusal(reasons.front().found, reasons.front().remedy);
  events_.event("connect", "connected to " + channel_->stream().peer() + ", " + channel_->stream().description(),
                {{"peer", channel_->stream().peer()}, {"host", there.host()}, {"kernel", there.kernel()}});
  fault_point("source-agent.connected");
}

bool SourcePeer::offers(const std::string& feature) const {
  return std::find(features_.begin(), features_.end(), feature) != features_.end();
}

std::vector<ClockSample> SourcePeer::sample_clocks() {
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
  return samples;
}

void SourcePeer::open_streams(const SessionId& id, const wire::Begun& begun) {
  if (begun.stream_tokens_size() < options_.streams) throw Corrupt("a message of the peer", "tokens are missing");
  sender_.emplace(connect_session_streams(connector_, address_, id, begun.stream_tokens(), options_.streams,
                                          options_.timeouts.connect, &interrupt_.stop()));
  set_up_streams();
}

void SourcePeer::close() noexcept {
  channel_.reset();
  sender_.reset();
}

bool SourcePeer::watch(milliseconds time, int wake) {
  if (Clock::now() - last_heartbeat_ > kHeartbeat) {
    hold_.alive();
    last_heartbeat_ = Clock::now();
  }
  interrupt_.throw_if_interrupted();
  if (channel_->buffered()) return true;
  const int death = hold_.death_fd().value_or(-1);
  const WatchedFor peer(waiter_, channel_->fd()), guardian(waiter_, death), other(waiter_, wake);
  waiter_.watch(interrupt_.stop().fd());
  waiter_.wait(time);
  if (waiter_.ready(death)) hold_.alive();
  if (!waiter_.ready(channel_->fd())) return false;
  if (passing_) throw_peer_news();
  return true;
}

void SourcePeer::pause(milliseconds time) const {
  pollfd p{interrupt_.stop().fd(), POLLIN, 0};
  ::poll(&p, 1, static_cast<int>(time.count()));
}

/// While pages flow the peer has only bad news.
void SourcePeer::throw_peer_news() {
  channel_->expect(Message::kReady, answer_by());
  throw Corrupt("a message of the peer", "it is ready too early");
}

wire::Message SourcePeer::wait_for(Message::BodyCase kind, milliseconds time) {
  const Deadline deadline = Deadline::in(time);
  while (!watch(kHeartbeat)) {
    if (deadline.passed())
      throw TimedOut("the destination did not answer for " + std::to_string(time.count() / 1000) + " s");
  }
  return channel_->expect(kind, answer_by());
}

}  // namespace migrate

// The source agent's conversation with its destination: the control channel, the page streams, and the waits for either
// with an eye on the guardian and the user.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/memory/tree_layout.h"
#include "migrate/session/base/options.h"
#include "migrate/session/handover/source_hold.h"
#include "migrate/session/loop/waiter.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/telling/events_pages.h"
#include "migrate/session/telling/interrupt.h"
#include "migrate/session/wire/channel.h"
#include "migrate/session/wire/clocks.h"
#include "migrate/session/wire/connector.h"
#include "pageserver/page_stream.h"

namespace migrate {

/// One thread, besides the page workers of a pass. Waits throw Cancelled when the user ends them, Error when the
/// guardian or the peer does.
class SourcePeer {
 public:
  using Clock = std::chrono::steady_clock;
  using Message = wire::Message;
  using milliseconds = std::chrono::milliseconds;

  /// All outlive it.
  SourcePeer(const SendOptions& options, const Connector& connector, SourceHold& hold, Events& events,
             const InterruptWatch& interrupt, Logger& log);

  /// Greets. Throws Refusal if the hosts do not go together.
  void connect();
  bool offers(const std::string& feature) const;
  std::vector<ClockSample> sample_clocks();
  double round_trip_seconds() const { return round_trip_seconds_; }
  /// After `begun`: connects the page streams.
  void open_streams(const SessionId& id, const wire::Begun& begun);
  /// In place of one that was cut.
  void replace_channel(std::unique_ptr<ControlChannel> channel) { channel_ = std::move(channel); }
  const Connector& connector() const { return connector_; }
  const CodecSet& codecs() const { return codecs_; }
  void close() noexcept;

  bool connected() const { return channel_ != nullptr; }
  /// Only while it is connected.
  ControlChannel& channel() { return *channel_; }
  PageSender& sender() { return *sender_; }
  bool has_streams() const { return sender_.has_value(); }

  Deadline answer_by() const { return Deadline::in(options_.timeouts.answer); }
  /// Waits up to `time` for the peer, telling the guardian that we live, or until `wake` is readable. Returns whether
  /// the peer has something to say.
  bool watch(milliseconds time, int wake = -1);
  bool interrupted() const { return interrupt_.interrupted(); }
  /// Sleeps, until the user interrupts.
  void pause(milliseconds time) const;
  Message wait_for(Message::BodyCase kind, milliseconds time);

  /// What the destination is to make room for, and to give back; it answers only once it has made room.
  void send_layout(const TreeLayout& layout, unsigned round);
  void send_discards(std::span<const PageDiscard> discards);

  /// Where the pass is, some ten times a second.
  using ShowPass = std::function<void(const PageProgress&)>;
  /// All pages of `sources`, and what the peer has to know of them. Began at pass_began().
  PageTotals send_pass(std::span<const PageSource> sources, const ShowPass& show);
  void tell_pages_done(const PageTotals& totals);
  Clock::time_point pass_began() const { return pass_began_; }

  /// The tree stands still: what is left goes as fast as it can.
  void lift_bandwidth_limit();
  /// Bytes of pages a second without the limit; 0: as with it.
  double stopped_bandwidth() const;

 private:
  void agree_on_codecs(const wire::Hello& there);
  void set_up_streams();
  void tell_codecs();
  void throw_peer_news();
  void show_progress(const ShowPass& show);
  [[noreturn]] void rethrow_with_peers_reason(const std::exception_ptr& failure);

  const SendOptions& options_;
  const Connector& connector_;
  SourceHold& hold_;
  Events& events_;
  const InterruptWatch& interrupt_;
  Logger& log_;
  HostPort address_;
  std::unique_ptr<ControlChannel> channel_;
  std::optional<PageSender> sender_;
  std::vector<std::string> features_;
  CodecSet codecs_;  ///< in which pages may go
  Waiter waiter_;
  double round_trip_seconds_ = 0.001;
  Clock::time_point last_heartbeat_;
  bool passing_ = false;  ///< pages are on their way
  uint64_t bytes_before_pass_ = 0, wire_before_pass_ = 0, pages_total_ = 0;
  Clock::time_point pass_began_;
};

}  // namespace migrate

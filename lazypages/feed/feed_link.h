// One end of a feed's urgent stream: packets in order, and whether anybody is there. For .cpp files of this folder.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lazypages/feed/feed_wire.h"
#include "pageserver/stop_event.h"
#include "pageserver/stream.h"

namespace migrate {

/// One thread receives, one sends (it may be the same). What is sent goes out with one write: header and body in a
/// piece.
class FeedLink {
 public:
  /// A peer that says nothing for `silence` is gone.
  FeedLink(Stream& stream, FeedSide ours, std::chrono::milliseconds silence);

  /// It may have been made long ago: the peer is listened to from now on.
  void begin() { sent_ = heard_ = std::chrono::steady_clock::now(); }
  /// The next packet; nullopt: a ping. Throws what the peer said that failed there, Disconnected at its end, TimedOut.
  std::optional<FeedPacket> receive();
  /// What follows the packet: all of it, before the next.
  void receive_body(std::span<std::byte> out);
  /// Whether something to receive comes before `until`. For a thread that has to send when it does not receive: no
  /// longer than until `also` is readable.
  bool wait(std::chrono::steady_clock::time_point until, const StopEvent& stop, int also = -1);

  void send(FeedPacket packet, std::span<const std::byte> body = {});
  /// In the room of kFeedPacketSize bytes before `body`.
  std::span<std::byte> put_header(FeedPacket packet, std::span<std::byte> body);
  void write(std::span<const std::byte> bytes);
  /// When a ping is due, if nothing is sent until then.
  std::chrono::steady_clock::time_point ping_due() const { return sent_ + silence_ / 5; }
  void ping_if_due();
  /// Tells the peer why this is the end, if it still can be told; once. When no thread sends any more.
  void send_failure(const std::string& why) noexcept;

  /// After another stream was cut: what the peer says of that, if it says so soon; else nothing. When no thread
  /// receives any more.
  std::exception_ptr last_words() noexcept;

  const std::string& peer() const { return stream_.peer(); }

 private:
  Stream& stream_;
  const FeedSide ours_;
  const std::chrono::milliseconds silence_;
  uint64_t sent_packets_ = 0, received_packets_ = 0;
  std::chrono::steady_clock::time_point sent_, heard_;
  bool broken_ = false;  ///< a write did not come to its end
  bool told_failure_ = false;
  std::byte header_[kFeedPacketSize];
  size_t header_got_ = 0;
  bool body_left_ = false;  ///< of the last packet
  std::vector<std::byte> out_;
};

}  // namespace migrate

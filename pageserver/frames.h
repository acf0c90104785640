// Framing of the control channel: a preface, then frames {u16 type, u16 flags, u32 length, payload}, little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "core/base/deadline.h"
#include "pageserver/stream.h"

namespace migrate {

struct Frame {
  uint16_t type = 0;
  uint16_t flags = 0;  ///< kOptional, the rest is the session layer's
  std::vector<std::byte> payload;
  static constexpr uint16_t kOptional = 1;  ///< a receiver that does not know the type skips it instead of refusing
};

/// Threads: any number may send (frames never mix), one receives.
class FrameChannel {
 public:
  static constexpr uint32_t kMagic = 0x4347494d;  ///< "MIGC"
  static constexpr uint16_t kVersion = 1;
  static constexpr size_t kPrefaceSize = 8;
  static constexpr uint32_t kDefaultLimit = 16 << 20;

  /// Longer payloads than `max_payload` are refused in both directions before anything is allocated.
  explicit FrameChannel(std::unique_ptr<Stream> stream, uint32_t max_payload = kDefaultLimit);

  /// First call on both sides: sends our preface and checks the peer's. `version` is what we speak; returns the peer's
  /// (the session layer takes the smaller one). Corrupt if the peer sent something else, Disconnected if nothing.
  uint16_t exchange_preface(Deadline deadline, uint16_t version = kVersion);

  /// Our half of it, where the peer's was read already.
  void send_preface(Deadline deadline, uint16_t version = kVersion);

  /// Throws what Stream::write throws; afterwards the channel cannot send any more.
  void send(uint16_t type, std::span<const std::byte> payload, uint16_t flags = 0);
  void send(uint16_t type, std::string_view payload, uint16_t flags = 0) { send(type, as_bytes_of(payload), flags); }

  /// The next frame; nullopt: the peer finished in an orderly way between two frames. Throws TimedOut (call again: what
  /// came of a frame is kept), Disconnected (cut, also inside a frame), Corrupt (over the limit), Cancelled.
  std::optional<Frame> recv(Deadline deadline);

  /// recv() could go on without waiting for the socket: an event loop asks before it polls stream().fd().
  bool buffered() const { return stream_->buffered(); }
  void finish() { stream_->finish(); }
  Stream& stream() { return *stream_; }
  const Stream& stream() const { return *stream_; }

 private:
  std::unique_ptr<Stream> stream_;
  uint32_t limit_;
  std::mutex send_mutex_;
  std::byte header_[8];
  size_t header_got_ = 0;
  Frame partial_;
  size_t payload_got_ = 0;
};

}  // namespace migrate

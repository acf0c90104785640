#include "pageserver/frames.h"

#include <algorithm>
#include <cstring>

#include "pageserver/codec.h"

namespace migrate {

FrameChannel::FrameChannel(std::unique_ptr<Stream> stream, uint32_t max_payload)
    : stream_(std::move(stream)), limit_(max_payload) {}

void FrameChannel::send_preface(Deadline deadline, uint16_t version) {
  std::byte bytes[kPrefaceSize];
  Packer(bytes).put(kMagic).put(version).put(uint16_t{0});
  stream_->write(bytes, deadline);
}

uint16_t FrameChannel::exchange_preface(Deadline deadline, uint16_t version) {
  send_preface(deadline, version);
  std::byte bytes[kPrefaceSize];
  if (!stream_->read_exact(bytes, deadline))
    throw Disconnected(stream_->peer() + " ended the connection before saying which version it speaks");
  Unpacker in(bytes);
  if (in.get<uint32_t>() != kMagic) throw Corrupt("the preface of " + stream_->peer(), "not migrate's control channel");
  const auto theirs = in.get<uint16_t>();
  if (theirs == 0) throw Corrupt("the preface of " + stream_->peer(), "version 0");
  return theirs;
}

void FrameChannel::send(uint16_t type, std::span<const std::byte> payload, uint16_t flags) {
  if (payload.size() > limit_)
    throw Error("send a message of " + std::to_string(payload.size()) + " bytes to " + stream_->peer() +
                ": the limit is " + std::to_string(limit_));
  std::vector<std::byte> message(8 + payload.size());
  Packer(message).put(type).put(flags).put(static_cast<uint32_t>(payload.size()));
  std::copy(payload.begin(), payload.end(), message.begin() + 8);
  const std::lock_guard lock(send_mutex_);
  stream_->write(message);
}

std::optional<Frame> FrameChannel::recv(Deadline deadline) {
  const auto cut = [&]() { return Disconnected(stream_->peer() + " ended the connection in the middle of a message"); };
  while (header_got_ < sizeof header_) {
    const size_t n = stream_->read_some(std::span(header_).subspan(header_got_), deadline);
    if (n == 0 && header_got_ == 0) return {};
    if (n == 0) throw cut();
    header_got_ += n;
  }
  Unpacker in(header_);
  partial_.type = in.get<uint16_t>();
  partial_.flags = in.get<uint16_t>();
  const auto length = in.get<uint32_t>();
  if (length > limit_)
    throw Corrupt("a message of " + stream_->peer(),
                  std::to_string(length) + " bytes, and the limit is " + std::to_string(limit_));
  // Memory grows with what arrives, not with what was announced.
  constexpr size_t kStep = 256 << 10;
  while (payload_got_ < length) {
    partial_.payload.resize(std::min<size_t>(length, payload_got_ + kStep));
    const size_t n = stream_->read_some(std::span(partial_.payload).subspan(payload_got_), deadline);
    if (n == 0) throw cut();
    payload_got_ += n;
  }
  header_got_ = payload_got_ = 0;
  return std::exchange(partial_, {});
}

}  // namespace migrate

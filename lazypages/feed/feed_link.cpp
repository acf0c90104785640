#include "lazypages/feed/feed_link.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lazypages/feed/feed_streams.h"
#include "pageserver/verdict.h"

namespace migrate {

using Clock = std::chrono::steady_clock;

namespace {

/// A side that found out why this is the end says so at once.
constexpr std::chrono::milliseconds kLastWords{2000};

}  // namespace

FeedLink::FeedLink(Stream& stream, FeedSide ours, std::chrono::milliseconds silence)
    : stream_(stream), ours_(ours), silence_(silence), sent_(Clock::now()), heard_(sent_) {
  stream_.set_idle_timeout(silence);
}

std::optional<FeedPacket> FeedLink::receive() {
  // Whoever is stopped in the middle can go on: for last_words().
  while (header_got_ < kFeedPacketSize) {
    const size_t n = stream_.read_some(std::span(header_).subspan(header_got_));
    if (n == 0) throw Disconnected(peer() + " ended the feed of pages before all were there");
    header_got_ += n;
  }
  header_got_ = 0;
  heard_ = Clock::now();
  const FeedSide theirs = ours_ == FeedSide::source ? FeedSide::destination : FeedSide::source;
  const FeedPacket packet = decode_feed_packet(header_, theirs, peer());
  if (packet.sequence != received_packets_++) throw Corrupt("the feed from " + peer(), "a packet is missing");
  body_left_ = body_size(packet) > 0;
  if (packet.kind == FeedPacket::Kind::ping) return std::nullopt;
  if (packet.kind != FeedPacket::Kind::failed) return packet;
  std::string why(packet.count, ' ');
  receive_body(std::as_writable_bytes(std::span(why)));
  throw PeerFailed(peer() + " ended the feed of pages: " + printable(why, kMostFeedText));
}

void FeedLink::receive_body(std::span<std::byte> out) {
  if (!stream_.read_exact(out)) throw Disconnected(peer() + " left in the middle of a packet");
  body_left_ = false;
}

bool FeedLink::wait(Clock::time_point until, const StopEvent& stop, int also) {
  if (stream_.buffered()) return true;
  const auto now = Clock::now();
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(std::min(until, heard_ + silence_) - now).count();
  pollfd polls[3] = {{stream_.fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}, {also, POLLIN, 0}};
  const int n = ::poll(polls, 3, static_cast<int>(std::max<int64_t>(left, 0)));
  if (n < 0 && errno != EINTR) throw Error("wait for", peer(), errno);
  if (n == 0 && Clock::now() >= heard_ + silence_)
    throw TimedOut(peer() + " has been silent for " + std::to_string(silence_.count() / 1000) +
                   " s; it hangs or the network is gone");
  return n > 0 && (polls[0].revents != 0 || polls[1].revents != 0);
}

std::span<std::byte> FeedLink::put_header(FeedPacket packet, std::span<std::byte> body) {
  packet.sequence = sent_packets_++;
  const std::span<std::byte, kFeedPacketSize> header(body.data() - kFeedPacketSize, kFeedPacketSize);
  encode_feed_packet(packet, header);
  return {header.data(), kFeedPacketSize + body.size()};
}

void FeedLink::write(std::span<const std::byte> bytes) {
  broken_ = true;
  stream_.write(bytes);
  broken_ = false;
  sent_ = Clock::now();
}

void FeedLink::send(FeedPacket packet, std::span<const std::byte> body) {
  out_.resize(kFeedPacketSize + body.size());
  if (!body.empty()) std::memcpy(out_.data() + kFeedPacketSize, body.data(), body.size());
  write(put_header(packet, std::span(out_).subspan(kFeedPacketSize)));
}

void FeedLink::ping_if_due() {
  if (Clock::now() >= ping_due()) send({.kind = FeedPacket::Kind::ping});
}

void FeedLink::send_failure(const std::string& why) noexcept {
  if (broken_ || std::exchange(told_failure_, true)) return;
  try {
    const std::string text = why.empty() ? "it failed" : why.substr(0, kMostFeedText);
    stream_.set_idle_timeout(kLastWords);
    send({.kind = FeedPacket::Kind::failed, .count = static_cast<uint32_t>(text.size())},
         std::as_bytes(std::span(text)));
    stream_.finish();
  } catch (const std::exception&) {  // it will notice that we are gone
  }
}

std::exception_ptr FeedLink::last_words() noexcept {
  try {
    // We have none of our own: the peer need not wait for them.
    ::shutdown(stream_.fd(), SHUT_WR);
    stream_.set_idle_timeout(kLastWords);
    const auto until = Clock::now() + kLastWords;
    const StopEvent never;
    std::vector<std::byte> body;
    while (!body_left_ && wait(until, never) && Clock::now() < until) {
      const auto packet = receive();
      if (!packet) continue;
      body.resize(body_size(*packet));
      receive_body(body);
    }
  } catch (const Disconnected&) {
  } catch (const TimedOut&) {
  } catch (const Corrupt&) {
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

}  // namespace migrate

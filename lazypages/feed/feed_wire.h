// The bytes of a feed's urgent stream: README.md shows the layout. For .cpp files of this folder and tests.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/memory/page_io.h"
#include "lazypages/feed/feed_waits.h"

namespace migrate {

inline constexpr uint32_t kFeedMagic = 0x4c47494d;  // "MIGL"
inline constexpr uint16_t kFeedVersion = 1;
inline constexpr size_t kFeedPacketSize = 32;
inline constexpr uint32_t kMostRequested = 64;      ///< pages of a request, and of an answer
inline constexpr uint32_t kMostMissingRuns = 1024;  ///< of a packet
inline constexpr uint32_t kMostFeedText = 512;
inline constexpr size_t kRunBytes = 16, kAddressBytes = 8;
inline constexpr uint32_t kWaitsWords = 9;  ///< of 8 bytes

/// Who speaks: each kind of packet is one side's, but for pings, failures and ends of tasks.
enum class FeedSide : uint8_t { source, destination };

struct FeedPacket {
  enum class Kind : uint8_t {
    pages = 1,     ///< source: `memory`, `value` the address, `count` pages; their contents follow
    begin = 16,    ///< destination: `value` pages are missing, `all`: that is all that was announced
    missing = 17,  ///< destination: of `memory`, `count` runs, which follow
    start = 18,    ///< destination: those were all, `value` pages: the fill may begin
    request = 19,  ///< destination: of `memory`, `count` pages, whose addresses follow
    whole = 20,    ///< destination: nothing is missing any more
    done = 21,     ///< source: so be it; `value` pages were sent as answers
    ping = 22,     ///< either
    failed = 23,   ///< either: the end, and why: a sentence of `count` bytes follows
    waits = 24,    ///< destination: what was waited for there, and how long; FeedWaits of `count` words follow
    gone = 25,     ///< source: `memory` has ended, its other pages never come; destination, of the same: so be it
  };
  Kind kind = Kind::ping;
  MemoryId memory;
  uint32_t count = 0;
  uint64_t value = 0;
  bool all = false;
  uint64_t sequence = 0;
};

void encode_feed_packet(const FeedPacket& packet, std::span<std::byte, kFeedPacketSize> out);
/// Throws Corrupt (naming `peer`) on anything that encode_feed_packet cannot have made of what `side` may say.
FeedPacket decode_feed_packet(std::span<const std::byte, kFeedPacketSize> in, FeedSide side, const std::string& peer);
/// Bytes that follow the packet.
size_t body_size(const FeedPacket& packet);

void encode_runs(std::span<const PageRun> runs, std::vector<std::byte>& out);
/// Runs that ascend and are disjoint; else throws Corrupt.
std::vector<PageRun> decode_runs(std::span<const std::byte> in, const std::string& peer);
void encode_addresses(std::span<const uint64_t> addresses, std::vector<std::byte>& out);
std::vector<uint64_t> decode_addresses(std::span<const std::byte> in, const std::string& peer);
void encode_waits(const FeedWaits& waits, std::vector<std::byte>& out);
FeedWaits decode_waits(std::span<const std::byte> in);

}  // namespace migrate

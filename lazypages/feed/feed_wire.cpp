#include "lazypages/feed/feed_wire.h"

#include "core/base/error.h"
#include "core/base/types.h"
#include "pageserver/codec.h"
#include "pageserver/page_records.h"

namespace migrate {
namespace {

constexpr uint16_t kAll = 1;

Corrupt corrupt(const std::string& peer, const char* why) { return {"the feed from " + peer, why}; }

bool of_memory(FeedPacket::Kind kind) {
  using Kind = FeedPacket::Kind;
  return kind == Kind::pages || kind == Kind::missing || kind == Kind::request || kind == Kind::gone;
}

/// The most that `count` may be; 0: it must be 0.
uint32_t most_of(FeedPacket::Kind kind) {
  switch (kind) {
    case FeedPacket::Kind::pages:
    case FeedPacket::Kind::request:
      return kMostRequested;
    case FeedPacket::Kind::missing:
      return kMostMissingRuns;
    case FeedPacket::Kind::failed:
      return kMostFeedText;
    case FeedPacket::Kind::waits:
      return kWaitsWords;
    default:
      return 0;
  }
}

bool has_value(FeedPacket::Kind kind) {
  return kind == FeedPacket::Kind::pages || kind == FeedPacket::Kind::begin || kind == FeedPacket::Kind::start ||
         kind == FeedPacket::Kind::done;
}

bool may_say(FeedSide side, uint8_t kind) {
  using Kind = FeedPacket::Kind;
  const auto k = static_cast<Kind>(kind);
  if (k == Kind::ping || k == Kind::failed || k == Kind::gone) return true;
  if (side == FeedSide::source) return k == Kind::pages || k == Kind::done;
  return k == Kind::waits || (kind >= static_cast<uint8_t>(Kind::begin) && kind <= static_cast<uint8_t>(Kind::whole));
}

/// Whether `pages` pages from `address` on are where pages can be.
bool is_place(uint64_t address, uint64_t pages) {
  return address % kPageSize == 0 && address < kMaxPageAddress && pages > 0 &&
         pages <= (kMaxPageAddress - address) / kPageSize;
}

}  // namespace

void encode_feed_packet(const FeedPacket& packet, std::span<std::byte, kFeedPacketSize> out) {
  Packer pack(out);
  const bool begin = packet.kind == FeedPacket::Kind::begin;
  pack.put(static_cast<uint8_t>(packet.kind));
  pack.put(of_memory(packet.kind) ? static_cast<uint8_t>(packet.memory.kind) : uint8_t{0});
  pack.put(begin && packet.all ? kAll : uint16_t{0}).put(begin ? uint32_t{kFeedVersion} : packet.count);
  pack.put(begin ? uint64_t{kFeedMagic} : of_memory(packet.kind) ? packet.memory.id : 0);
  pack.put(packet.value).put(packet.sequence);
}

FeedPacket decode_feed_packet(std::span<const std::byte, kFeedPacketSize> in, FeedSide side, const std::string& peer) {
  Unpacker unpack(in);
  FeedPacket packet;
  const auto kind = unpack.get<uint8_t>();
  const auto memory_kind = unpack.get<uint8_t>();
  const auto flags = unpack.get<uint16_t>();
  packet.count = unpack.get<uint32_t>();
  packet.memory.id = unpack.get<uint64_t>();
  packet.value = unpack.get<uint64_t>();
  packet.sequence = unpack.get<uint64_t>();
  if (!may_say(side, kind)) throw corrupt(peer, "unknown kind of packet");
  packet.kind = static_cast<FeedPacket::Kind>(kind);
  const bool begin = packet.kind == FeedPacket::Kind::begin;
  if (begin) {
    if (packet.memory.id != kFeedMagic) throw corrupt(peer, "it is none");
    if (packet.count != kFeedVersion) throw corrupt(peer, "unknown version");
    packet.all = (flags & kAll) != 0;
    packet.memory.id = packet.count = 0;
  }
  if ((flags & ~(begin ? kAll : 0)) != 0) throw corrupt(peer, "unknown flags in a packet");
  if (of_memory(packet.kind)) {
    if (memory_kind != 1 && memory_kind != 2) throw corrupt(peer, "unknown kind of memory");
    packet.memory.kind = static_cast<MemoryId::Kind>(memory_kind);
  } else if (memory_kind != 0 || packet.memory.id != 0) {
    throw corrupt(peer, "a memory in a packet that is of none");
  }
  if (!has_value(packet.kind) && packet.value != 0) throw corrupt(peer, "a value in a packet that has none");
  const uint32_t most = most_of(packet.kind);
  const uint32_t least = packet.kind == FeedPacket::Kind::waits ? most : most > 0 ? 1 : 0;
  if (packet.count > most || packet.count < least) throw corrupt(peer, "a packet's count is out of bounds");
  if (packet.kind == FeedPacket::Kind::pages && !is_place(packet.value, packet.count))
    throw corrupt(peer, "an address is out of bounds");
  return packet;
}

size_t body_size(const FeedPacket& packet) {
  switch (packet.kind) {
    case FeedPacket::Kind::pages:
      return packet.count * kPageSize;
    case FeedPacket::Kind::missing:
      return packet.count * kRunBytes;
    case FeedPacket::Kind::request:
    case FeedPacket::Kind::waits:
      return packet.count * kAddressBytes;
    case FeedPacket::Kind::failed:
      return packet.count;
    default:
      return 0;
  }
}

void encode_runs(std::span<const PageRun> runs, std::vector<std::byte>& out) {
  const size_t at = out.size();
  out.resize(at + runs.size() * kRunBytes);
  Packer pack({out.data() + at, out.size() - at});
  for (const PageRun& run : runs) pack.put(run.address).put(run.pages);
}

std::vector<PageRun> decode_runs(std::span<const std::byte> in, const std::string& peer) {
  Unpacker unpack(in);
  std::vector<PageRun> runs(in.size() / kRunBytes);
  uint64_t end = 0;
  for (PageRun& run : runs) {
    run.address = unpack.get<uint64_t>();
    run.pages = unpack.get<uint64_t>();
    if (!is_place(run.address, run.pages)) throw corrupt(peer, "a run of missing pages is out of bounds");
    if (run.address < end) throw corrupt(peer, "runs of missing pages do not ascend");
    end = run.address + run.pages * kPageSize;
  }
  return runs;
}

void encode_addresses(std::span<const uint64_t> addresses, std::vector<std::byte>& out) {
  const size_t at = out.size();
  out.resize(at + addresses.size() * kAddressBytes);
  Packer pack({out.data() + at, out.size() - at});
  for (const uint64_t address : addresses) pack.put(address);
}

std::vector<uint64_t> decode_addresses(std::span<const std::byte> in, const std::string& peer) {
  Unpacker unpack(in);
  std::vector<uint64_t> addresses(in.size() / kAddressBytes);
  for (uint64_t& address : addresses) {
    address = unpack.get<uint64_t>();
    if (!is_place(address, 1)) throw corrupt(peer, "the address of a page that is asked for is out of bounds");
  }
  return addresses;
}

void encode_waits(const FeedWaits& waits, std::vector<std::byte>& out) {
  out.resize(kWaitsWords * sizeof(uint64_t));
  Packer pack(out);
  pack.put(waits.wanted).put(waits.by_request).put(waits.by_fill).put(waits.waiting).put(waits.longest_us);
  pack.put(waits.median_us).put(waits.most_us).put(waits.ninety_nine_us).put(waits.stalls_us);
}

FeedWaits decode_waits(std::span<const std::byte> in) {
  Unpacker unpack(in);
  FeedWaits waits;
  for (uint64_t* word : {&waits.wanted, &waits.by_request, &waits.by_fill, &waits.waiting, &waits.longest_us,
                         &waits.median_us, &waits.most_us, &waits.ninety_nine_us, &waits.stalls_us})
    *word = unpack.get<uint64_t>();
  return waits;
}

}  // namespace migrate

#include "migrate/cli/track_wire.h"

#include <cstring>

namespace migrate::cli {
namespace {

constexpr uint64_t kVersion = 1;

class Out {
 public:
  void number(uint64_t value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof value);
  }
  void text(const std::string& value) {
    number(value.size());
    const auto bytes = as_bytes_of(value);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class In {
 public:
  explicit In(std::span<const std::byte> bytes) : rest_(bytes) {}
  uint64_t number() {
    uint64_t value = 0;
    std::memcpy(&value, bytes(sizeof value).data(), sizeof value);
    return value;
  }
  std::string text() {
    const auto b = bytes(number());
    return {reinterpret_cast<const char*>(b.data()), b.size()};
  }
  /// A count of things of at least `size` bytes each.
  uint64_t count(size_t size) {
    const uint64_t n = number();
    if (n > rest_.size() / size) short_message();
    return n;
  }

 private:
  [[noreturn]] static void short_message() { throw Corrupt("a message of the tracking keeper", "it is too short"); }
  std::span<const std::byte> bytes(uint64_t size) {
    if (size > rest_.size()) short_message();
    const auto taken = rest_.first(static_cast<size_t>(size));
    rest_ = rest_.subspan(static_cast<size_t>(size));
    return taken;
  }
  std::span<const std::byte> rest_;
};

}  // namespace

std::vector<std::byte> encode_message(const TrackMessage& m) {
  Out out;
  out.number(kVersion);
  out.number(static_cast<uint64_t>(m.kind));
  out.text(m.folder);
  out.number(m.timeout_ms);
  out.text(m.sentence);
  out.text(m.remedy);
  out.number(m.pages.size());
  for (const auto& [memory, pages] : m.pages) {
    out.number(static_cast<uint64_t>(memory.kind));
    out.number(memory.id);
    out.number(pages.ranges().size());
    for (const PageSet::Range& range : pages.ranges()) {
      out.number(range.start);
      out.number((range.end - range.start) / kPageSize);
    }
  }
  return out.take();
}

TrackMessage decode_message(std::span<const std::byte> bytes) {
  In in(bytes);
  if (in.number() != kVersion)
    throw Refusal("another version of migrate tracks this tree", "end it with that version's `migrate untrack`");
  TrackMessage m;
  m.kind = static_cast<TrackMessage::Kind>(in.number());
  m.folder = in.text();
  m.timeout_ms = in.number();
  m.sentence = in.text();
  m.remedy = in.text();
  const uint64_t memories = in.count(3 * sizeof(uint64_t));
  for (uint64_t i = 0; i < memories; ++i) {
    MemoryId memory;
    memory.kind = static_cast<MemoryId::Kind>(in.number());
    memory.id = in.number();
    PageSet& pages = m.pages[memory];
    const uint64_t count = in.count(2 * sizeof(uint64_t));
    uint64_t last = 0;
    for (uint64_t n = 0; n < count; ++n) {
      const uint64_t address = in.number(), run = in.number();
      if (address % kPageSize != 0 || address < last || address > kUserSpace ||
          run > (kUserSpace - address) / kPageSize)
        throw Corrupt("a message of the tracking keeper", "pages are out of range or out of order");
      last = address + run * kPageSize;
      pages.append(address, last);
    }
  }
  return m;
}

void send_message(PacketSocket& socket, const TrackMessage& message) { socket.send_blob(encode_message(message)); }

TrackMessage receive_message(PacketSocket& socket, const Deadline& deadline) {
  return decode_message(socket.receive_blob(deadline));
}

}  // namespace migrate::cli

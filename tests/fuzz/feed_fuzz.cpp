// Both ends of post-copy's feed against a hostile peer. First byte of an input: 0 what a destination says on the urgent
// stream; 1 what a source says there; 2 what it says on a fill stream; 3 a packet, 4 runs, 5 addresses, that must be
// encoded again as they were.
#include <sys/mman.h>
#include <sys/socket.h>
#include <algorithm>

#include <cerrno>
#include <cstring>
#include <map>
#include <thread>

#include "fuzz.h"
#include "lazypages/feed/feed_wire.h"
#include "lazypages/feed/page_feeder.h"
#include "lazypages/feed/page_fetcher.h"
#include "pageserver/page_records.h"

namespace migrate::fuzz {
namespace {

using Bytes = std::vector<std::byte>;
using Kind = FeedPacket::Kind;
constexpr size_t kMostBytes = 64 << 10;  ///< fits into a socket's buffer
constexpr MemoryId kTask{MemoryId::Kind::task, 7}, kShared{MemoryId::Kind::shmem, 3};
/// Pages 2 to 9 and 12 of kTask, 0 to 3 of kShared.
const MissingRuns kAnnounced{{kTask, {{2 * kPageSize, 8}, {12 * kPageSize, 1}}}, {kShared, {{0, 4}}}};
constexpr uint64_t kPages = 13;

bool is_announced(MemoryId memory, uint64_t address, uint64_t pages) {
  const auto known = kAnnounced.find(memory);
  if (known == kAnnounced.end() || address % kPageSize != 0 || pages == 0) return false;
  for (const PageRun& run : known->second)
    if (address >= run.address && address < run.address + run.pages * kPageSize)
      return pages <= run.pages - (address - run.address) / kPageSize;
  return false;
}

std::byte first_byte(MemoryId memory, uint64_t address) {
  return static_cast<std::byte>(memory.id * 16 + address / kPageSize);
}

std::vector<PageSource> make_sources() {
  std::vector<PageSource> sources;
  for (const auto& [memory, runs] : kAnnounced) {
    PageSource source{.memory = memory, .runs = runs};
    source.fd = Fd(check(::memfd_create("pages", MFD_CLOEXEC), "make", "memfd"));
    Bytes contents(kPages * kPageSize, std::byte{0xee});
    for (const PageRun& run : runs)
      for (uint64_t at = run.address; at < run.address + run.pages * kPageSize; at += kPageSize)
        contents[at] = first_byte(memory, at);
    write_full(source.fd.get(), contents, "memfd");
    sources.push_back(std::move(source));
  }
  return sources;
}

struct Ends {
  Ends() : Ends(pair()) {}
  explicit Ends(std::pair<Fd, Fd> fds) : peer(std::move(fds.first)), ours(raw_stream(std::move(fds.second))) {}
  static std::pair<Fd, Fd> pair() {
    int fds[2];
    check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "make", "socket pair");
    return {Fd(fds[0]), Fd(fds[1])};
  }
  void say(std::span<const std::byte> bytes) const {
    // It may have left already.
    if (::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return;
    ::shutdown(peer.get(), SHUT_WR);
  }
  /// What comes next; 0: nothing more does. libFuzzer's clock interrupts calls.
  size_t hear(std::span<std::byte> out) const {
    ssize_t n = 0;
    while ((n = ::recv(peer.get(), out.data(), out.size(), 0)) < 0 && errno == EINTR) {
    }
    return n > 0 ? static_cast<size_t>(n) : 0;
  }
  bool hear_all(std::span<std::byte> out) const {
    while (!out.empty()) {
      const size_t n = hear(out);
      if (n == 0) return false;
      out = out.subspan(n);
    }
    return true;
  }
  Fd peer;
  std::unique_ptr<Stream> ours;
};

FeedStreams streams_of(Ends& urgent, Ends& fill) {
  FeedStreams streams;
  streams.urgent = std::move(urgent.ours);
  streams.fill.push_back(std::move(fill.ours));
  return streams;
}

/// What a feeder said, whatever it was asked: announced pages with their contents, and perhaps why it ended.
void check_answers(const Bytes& said) {
  uint64_t sequence = 0;
  for (std::span<const std::byte> left(said); left.size() >= kFeedPacketSize;) {
    const auto packet = decode_feed_packet(left.first<kFeedPacketSize>(), FeedSide::source, "the feeder");
    demand(packet.sequence == sequence++, "packets that do not follow each other");
    left = left.subspan(kFeedPacketSize);
    if (left.size() < body_size(packet)) return;  // it was cut
    if (packet.kind == Kind::pages) {
      demand(is_announced(packet.memory, packet.value, packet.count), "pages that were not announced");
      for (uint64_t i = 0; i < packet.count; ++i)
        demand(left[i * kPageSize] == first_byte(packet.memory, packet.value + i * kPageSize), "other contents");
    }
    left = left.subspan(body_size(packet));
  }
}

void ask(std::span<const std::byte> bytes) {
  static const std::vector<PageSource> sources = make_sources();
  Ends urgent, fill;
  PageFeeder feeder(streams_of(urgent, fill), sources, {}, {.idle = false});
  std::thread feeding([&] {
    try {
      feeder.run();
    } catch (const Error&) {  // as it should be
    }
  });
  urgent.say(bytes);
  Bytes said, piece(64 << 10);
  while (const size_t n = urgent.hear(piece))
    said.insert(said.end(), piece.begin(), piece.begin() + static_cast<ptrdiff_t>(n));
  feeding.join();
  check_answers(said);
}

class CheckingSink : public PageSink {
 public:
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    demand(!data.empty() && data.size() % kPageSize == 0, "parts of pages");
    demand(is_announced(memory, address, data.size() / kPageSize), "pages that are not missing");
    for (uint64_t at = address; at < address + data.size(); at += kPageSize)
      demand(++times[{memory, at}] <= 2, "a page that came once too often");
  }
  std::map<std::pair<MemoryId, uint64_t>, int> times;  ///< with the fill, and as an answer
};

void tell(std::span<const std::byte> bytes, bool by_fill) {
  Ends urgent, fill;
  CheckingSink sink;
  WantedPages wanted;
  for (const uint64_t n : {2u, 3u, 12u}) wanted.want(kTask, n * kPageSize);
  PageFetcher fetcher(streams_of(urgent, fill), sink, wanted, kAnnounced, true,
                      {.codecs = {.lz4 = true, .zstd = true}, .idle = false});
  // What is wanted has been asked for: answers to it may come.
  std::atomic<bool> over = false;
  std::thread fetching([&] {
    try {
      fetcher.run();
    } catch (const Error&) {  // as it should be
    }
    over = true;
  });
  Bytes asked(2 * kFeedPacketSize + 3 * kAddressBytes);
  demand(urgent.hear_all(asked), "a fetcher that asks for nothing");
  if (by_fill) {
    fill.say(bytes);
    // Once it has nothing more to say, it waits for what we have to say.
    while (!over && !fetcher.filled() && ::recv(urgent.peer.get(), asked.data(), asked.size(), MSG_DONTWAIT) != 0)
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    ::shutdown(urgent.peer.get(), SHUT_WR);
  } else {
    urgent.say(bytes);
  }
  fetching.join();
}

void decode_again(unsigned kind, std::span<const std::byte> bytes) {
  if (kind == 3 && bytes.size() < kFeedPacketSize) return;
  Bytes again;
  if (kind == 3) {
    for (const FeedSide side : {FeedSide::source, FeedSide::destination}) {
      try {
        const auto packet = decode_feed_packet(bytes.first<kFeedPacketSize>(), side, "it");
        again.resize(kFeedPacketSize);
        encode_feed_packet(packet, std::span(again).first<kFeedPacketSize>());
      } catch (const Corrupt&) {
        continue;
      }
      demand(std::memcmp(again.data(), bytes.data(), kFeedPacketSize) == 0, "a packet that is another one");
    }
    return;
  }
  try {
    if (kind == 4) encode_runs(decode_runs(bytes.first(bytes.size() / kRunBytes * kRunBytes), "it"), again);
    if (kind == 5)
      encode_addresses(decode_addresses(bytes.first(bytes.size() / kAddressBytes * kAddressBytes), "it"), again);
  } catch (const Corrupt&) {
    return;
  }
  demand(again.size() <= bytes.size() && std::ranges::equal(again, bytes.first(again.size())), "other numbers");
}

/// Puts packets one after the other.
class Script {
 public:
  explicit Script(unsigned kind) : bytes_{static_cast<std::byte>(kind)} {}
  Script& say(FeedPacket packet, const Bytes& body = {}) {
    packet.sequence = sequence_++;
    const size_t at = bytes_.size();
    bytes_.resize(at + kFeedPacketSize);
    encode_feed_packet(packet, std::span<std::byte, kFeedPacketSize>(bytes_.data() + at, kFeedPacketSize));
    bytes_.insert(bytes_.end(), body.begin(), body.end());
    return *this;
  }
  Script& request(MemoryId memory, const std::vector<uint64_t>& pages) {
    Bytes body;
    std::vector<uint64_t> addresses;
    for (const uint64_t page : pages) addresses.push_back(page * kPageSize);
    encode_addresses(addresses, body);
    return say({.kind = Kind::request, .memory = memory, .count = static_cast<uint32_t>(pages.size())}, body);
  }
  Script& missing(MemoryId memory, const std::vector<PageRun>& runs) {
    Bytes body;
    encode_runs(runs, body);
    return say({.kind = Kind::missing, .memory = memory, .count = static_cast<uint32_t>(runs.size())}, body);
  }
  Script& page(uint64_t number) {
    return say({.kind = Kind::pages, .memory = kTask, .count = 1, .value = number * kPageSize}, Bytes(kPageSize));
  }
  Script& failed(std::string_view why) {
    const auto text = std::as_bytes(std::span(why.data(), why.size()));
    return say({.kind = Kind::failed, .count = static_cast<uint32_t>(why.size())}, Bytes(text.begin(), text.end()));
  }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
  uint64_t sequence_ = 0;
};

Bytes whole_fill() {
  Bytes bytes{std::byte{2}};
  StreamTotals totals;
  std::byte header[kPageRecordSize];
  uint64_t sequence = 0;
  for (const auto& [memory, runs] : kAnnounced)
    for (const PageRun& run : runs) {
      const bool zeros = memory == kShared;
      encode_record({.kind = zeros ? PageRecord::Kind::zeros : PageRecord::Kind::pages,
                     .memory = memory,
                     .address = run.address,
                     .pages = static_cast<uint32_t>(run.pages),
                     .sequence = sequence++},
                    header);
      totals.add(header, static_cast<uint32_t>(run.pages));
      bytes.insert(bytes.end(), header, header + sizeof header);
      if (!zeros) bytes.resize(bytes.size() + run.pages * kPageSize);
    }
  encode_record(totals.end(), header);
  bytes.insert(bytes.end(), header, header + sizeof header);
  return bytes;
}

}  // namespace

const Target kTarget{"feed_fuzz", false};

void run(std::span<const std::byte> input) {
  if (input.size() < 2 || input.size() > kMostBytes) return;
  const auto kind = std::to_integer<unsigned>(input[0]);
  input = input.subspan(1);
  if (kind == 0) return ask(input);
  if (kind <= 2) return tell(input, kind == 2);
  if (kind <= 5) decode_again(kind, input);
}

std::vector<std::vector<std::byte>> seeds() {
  const FeedPacket all{.kind = Kind::begin, .value = kPages, .all = true}, ping{.kind = Kind::ping};
  std::vector<Bytes> out;
  out.push_back(Script(0)
                    .say(all)
                    .request(kTask, {2, 3, 9})
                    .say(ping)
                    .request(kShared, {0, 1, 2, 3})
                    .request(kTask, {12})
                    .say({.kind = Kind::whole})
                    .bytes());
  out.push_back(Script(0)
                    .say({.kind = Kind::begin, .value = 5})
                    .request(kTask, {4})
                    .missing(kTask, {{3 * kPageSize, 1}, {5 * kPageSize, 2}})
                    .missing(kShared, {{0, 1}, {3 * kPageSize, 1}})
                    .say({.kind = Kind::start, .value = 5})
                    .failed("its memory is on fire")
                    .bytes());
  out.push_back(Script(1).page(2).say(ping).page(12).page(3).failed("it is gone").bytes());
  out.push_back(Script(1).page(2).say({.kind = Kind::done, .value = 1}).bytes());
  out.push_back(whole_fill());
  for (const Script& one : {Script(3).say(all), Script(3).request(kTask, {1}), Script(3).say(ping), Script(3).page(5)})
    out.push_back(one.bytes());
  Bytes runs{std::byte{4}}, addresses{std::byte{5}};
  encode_runs(std::vector<PageRun>{{kPageSize, 3}, {8 * kPageSize, 1}}, runs);
  encode_addresses(std::vector<uint64_t>{0, kPageSize, 3 * kPageSize}, addresses);
  out.push_back(runs);
  out.push_back(addresses);
  return out;
}

}  // namespace migrate::fuzz

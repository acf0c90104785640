#include "pageserver/page_stream.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

#include "pageserver/frames.h"
#include "pageserver/page_records.h"
#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;

class MapSink : public PageSink {
 public:
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    const std::lock_guard lock(mutex);
    if (fail_at != 0 && ++writes >= fail_at) throw Error("write to the staging memory of task 7: it died");
    for (size_t at = 0; at < data.size(); at += kPageSize)
      EXPECT_TRUE(pages
                      .emplace(std::pair(memory, address + at),
                               std::vector<std::byte>(data.begin() + static_cast<ptrdiff_t>(at),
                                                      data.begin() + static_cast<ptrdiff_t>(at + kPageSize)))
                      .second);
  }
  std::mutex mutex;
  std::map<std::pair<MemoryId, uint64_t>, std::vector<std::byte>> pages;
  int fail_at = 0, writes = 0;
};

Fd memory_file(std::span<const std::byte> content) {
  Fd fd(check(::memfd_create("pages", MFD_CLOEXEC), "make", "memfd"));
  write_full(fd.get(), content, "memfd");
  return fd;
}

struct Ends {
  std::unique_ptr<PageSender> sender;
  std::unique_ptr<PageReceiver> receiver;
};

Ends connect_ends(PageSink& sink, size_t count, const std::string& keys, ReceiveLimits limits = {}) {
  std::vector<std::unique_ptr<Stream>> out, in;
  for (size_t i = 0; i < count; ++i) {
    if (keys.empty()) {
      auto [a, b] = raw_pair();
      out.push_back(std::move(a));
      in.push_back(std::move(b));
      continue;
    }
    Pair p = tcp_pair();
    auto [c, s] = both([&] { return TlsContext(tls_config(keys, "a")).connect(std::move(p.client), "b", soon()); },
                       [&] { return TlsContext(tls_config(keys, "b")).accept(std::move(p.server), soon()); });
    out.push_back(std::move(c.stream));
    in.push_back(std::move(s.stream));
  }
  return {std::make_unique<PageSender>(std::move(out)), std::make_unique<PageReceiver>(std::move(in), sink, limits)};
}

/// Random pages with a hole of zeros here and there.
std::vector<std::byte> content_with_zeros(size_t pages, uint64_t seed) {
  auto content = random_bytes(pages * kPageSize, seed);
  for (size_t p = 0; p < pages; ++p)
    if (p % 7 == seed % 7 || (p > 300 && p < 600)) std::memset(content.data() + p * kPageSize, 0, kPageSize);
  return content;
}

class Pages : public ::testing::TestWithParam<std::tuple<size_t, bool>> {};

TEST_P(Pages, ArriveOnceAndWhole) {
  const auto [count, tls] = GetParam();
  TempDir temp;
  if (tls) make_keys({.dir = temp.path, .names = {"a", "b"}});
  MapSink sink;
  Ends ends = connect_ends(sink, count, tls ? temp.path : "");
  std::map<MemoryId, std::vector<std::byte>> contents;
  std::vector<PageSource> sources;
  uint64_t expected = 0, zeros = 0;
  for (uint64_t id = 1; id <= 5; ++id) {
    PageSource source;
    source.memory = {id % 2 == 0 ? MemoryId::Kind::shmem : MemoryId::Kind::task, id};
    const auto& content = contents[source.memory] = content_with_zeros(1000, id);
    source.fd = memory_file(content);
    source.runs = {
        {0, 1, true}, {2 * kPageSize, 600, true}, {700 * kPageSize, 20, false}, {800 * kPageSize, 200, true}};
    for (const PageRun& run : source.runs)
      for (uint64_t p = 0; p < run.pages; ++p) {
        const auto* page = content.data() + run.address + p * kPageSize;
        const bool zero =
            run.zero_ok && std::all_of(page, page + kPageSize, [](std::byte b) { return b == std::byte{0}; });
        ++(zero ? zeros : expected);
      }
    sources.push_back(std::move(source));
  }
  for (int pass = 0; pass < 2; ++pass) {  // the same streams carry several passes
    sink.pages.clear();
    auto receiving = std::async(std::launch::async, [&] { return ends.receiver->receive(); });
    const PageTotals sent = ends.sender->send(sources);
    const PageTotals got = receiving.get();
    EXPECT_EQ(sent.pages, expected);
    EXPECT_EQ(sent.zero_pages, zeros);
    EXPECT_EQ(got.pages, sent.pages);
    EXPECT_EQ(got.records, sent.records);
    EXPECT_EQ(sink.pages.size(), expected);
    for (const auto& [key, data] : sink.pages)
      ASSERT_EQ(std::memcmp(data.data(), contents[key.first].data() + key.second, kPageSize), 0);
  }
  EXPECT_EQ(ends.sender->counters().pages.load(), 2 * expected);
  EXPECT_EQ(ends.receiver->counters().pages.load(), 2 * expected);
}

INSTANTIATE_TEST_SUITE_P(Streams, Pages,
                         ::testing::Combine(::testing::Values(size_t{1}, size_t{4}), ::testing::Bool()));

std::vector<PageSource> one_source(size_t pages, size_t claimed) {
  std::vector<PageSource> sources(1);
  sources[0].memory.id = 7;
  sources[0].fd = memory_file(random_bytes(pages * kPageSize, 9));
  sources[0].runs = {{0, claimed, false}};
  return sources;
}

/// Sends text, zeros and noise; gives what both ends counted.
std::pair<PageTotals, PageTotals> moved_with(const Compression& wanted, CodecSet sends, size_t passes,
                                             uint64_t limit = 0) {
  MapSink sink;
  Ends ends = connect_ends(sink, 2, "", {.codecs = {.lz4 = true, .zstd = true}});
  ends.sender->set_compression(wanted, sends);
  ends.sender->set_bandwidth_limit(limit);
  auto content = random_bytes(2000 * kPageSize, 4);
  for (size_t p = 0; p < 1500; ++p)
    for (size_t at = 0; at < kPageSize; ++at)
      content[p * kPageSize + at] = static_cast<std::byte>("0123456789abcdef"[(p + at * at / 7) % 16]);
  std::vector<PageSource> sources(1);
  sources[0].memory.id = 7;
  sources[0].fd = memory_file(content);
  sources[0].runs = {{0, 2000, true}};
  std::pair<PageTotals, PageTotals> totals;
  for (size_t pass = 0; pass < passes; ++pass) {
    sink.pages.clear();
    auto receiving = std::async(std::launch::async, [&] { return ends.receiver->receive(); });
    totals.first = ends.sender->send(sources);
    totals.second = receiving.get();
    EXPECT_EQ(sink.pages.size(), 2000u);
    for (const auto& [key, data] : sink.pages)
      EXPECT_EQ(std::memcmp(data.data(), content.data() + key.second, kPageSize), 0) << key.second;
  }
  return totals;
}

TEST(PackedPages, ArriveAndAreCounted) {
  const auto [raw, raw_there] = moved_with({}, {}, 1);
  EXPECT_EQ(raw.wire_bytes, raw_there.wire_bytes);
  EXPECT_GT(raw.wire_bytes, 2000 * kPageSize);
  for (const char* text : {"lz4", "zstd", "zstd:5"}) {
    const auto [sent, got] = moved_with(*parse_compression(text), {.lz4 = true, .zstd = true}, 2);
    EXPECT_EQ(sent.pages, 2000u);
    EXPECT_EQ(sent.wire_bytes, got.wire_bytes);
    EXPECT_LT(sent.wire_bytes, 1600 * kPageSize) << text;
    EXPECT_GT(sent.wire_bytes, 500 * kPageSize) << text;  // the noise goes raw
  }
  // What the receiver does not take is not sent.
  EXPECT_EQ(moved_with(*parse_compression("zstd"), {.lz4 = true}, 1).first.wire_bytes, raw.wire_bytes);
  EXPECT_EQ(moved_with(*parse_compression("auto"), {}, 1).first.wire_bytes, raw.wire_bytes);
  moved_with(*parse_compression("auto"), {.lz4 = true, .zstd = true}, 3);
}

TEST(PackedPages, WithinTheBandwidthLimit) {
  constexpr uint64_t kLimit = 40'000'000;
  const auto began = std::chrono::steady_clock::now();
  const auto [sent, got] = moved_with(*parse_compression("lz4"), {.lz4 = true, .zstd = true}, 1, kLimit);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  EXPECT_GE(took.count(), static_cast<double>(sent.wire_bytes) / kLimit - 0.011);
}

TEST(PageFailures, SinkFailureEndsBothSides) {
  MapSink sink;
  sink.fail_at = 3;
  Ends ends = connect_ends(sink, 3, "");
  const auto sources = one_source(8000, 8000);
  auto sending = std::async(std::launch::async, [&] { return ends.sender->send(sources); });
  try {
    ends.receiver->receive();
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "write to the staging memory of task 7: it died");
  }
  EXPECT_THROW(sending.get(), Disconnected);
}

TEST(PageFailures, SourceGone) {
  MapSink sink;
  Ends ends = connect_ends(sink, 2, "");
  const auto sources = one_source(100, 5000);
  auto receiving = std::async(std::launch::async, [&] { return ends.receiver->receive(); });
  try {
    ends.sender->send(sources);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("task 7"), std::string::npos) << e.what();
  }
  EXPECT_THROW(receiving.get(), Disconnected);
}

TEST(PageFailures, CancelWhileBlocked) {
  MapSink sink;
  Ends ends = connect_ends(sink, 2, "");  // nobody receives: the sender blocks when the sockets are full
  auto sources = one_source(8000, 0);
  for (uint64_t p = 0; p < 8000; p += 2) sources[0].runs.push_back({p * kPageSize, 1, false});  // records of one page
  auto sending = std::async(std::launch::async, [&] { return ends.sender->send(sources); });
  while (ends.sender->counters().pages.load() == 0) std::this_thread::yield();
  ends.sender->cancel();
  EXPECT_THROW(sending.get(), Cancelled);
}

TEST(PageFailures, SilentPeer) {
  MapSink sink;
  auto [a, b] = raw_pair();
  a->set_idle_timeout(std::chrono::milliseconds(20));
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(std::move(a));
  PageReceiver receiver(std::move(streams), sink);
  EXPECT_THROW(receiver.receive(), TimedOut);
}

TEST(PageFailures, MoreThanAnnounced) {
  MapSink sink;
  Ends ends = connect_ends(sink, 2, "", {.max_pages = 999});
  const auto sources = one_source(1000, 1000);
  auto sending = std::async(std::launch::async, [&] { return ends.sender->send(sources); });
  EXPECT_THROW(ends.receiver->receive(), Corrupt);
  EXPECT_THROW(sending.get(), Disconnected);
}

/// Feeds bytes to a receiver; true if it took them for a whole pass.
bool accepts(std::span<const std::byte> bytes, CodecSet codecs = {.lz4 = true, .zstd = true}) {
  class Nowhere : public PageSink {
    void write(MemoryId, uint64_t address, std::span<const std::byte> data) override {
      EXPECT_EQ(address % kPageSize, 0u);
      EXPECT_EQ(data.size() % kPageSize, 0u);
      EXPECT_LE(address + data.size(), kMaxPageAddress);
    }
  } sink;
  auto [mine, theirs] = raw_pair();
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(std::move(theirs));
  PageReceiver receiver(std::move(streams), sink, {.codecs = codecs});
  auto feeding = std::async(std::launch::async, [&bytes, feeder = std::move(mine)]() mutable {
    try {
      feeder->write(bytes);
      feeder->finish();
      std::byte ack[64];
      feeder->read_some(ack);
    } catch (const Error&) {
    }
    feeder.reset();
  });
  try {
    receiver.receive();
    feeding.get();
    return true;
  } catch (const Error&) {
    feeding.get();
    return false;
  }
}

std::vector<std::byte> valid_pass() {
  std::vector<std::byte> bytes;
  StreamTotals totals;
  std::byte header[kPageRecordSize];
  for (uint32_t i = 0; i < 5; ++i) {
    PageRecord record{.memory = {MemoryId::Kind::task, i}, .address = i * 8192, .pages = i + 1, .sequence = i};
    encode_record(record, header);
    totals.add(header, record.pages);
    bytes.insert(bytes.end(), header, header + sizeof header);
    bytes.resize(bytes.size() + record.pages * kPageSize);
  }
  encode_record(totals.end(), header);
  bytes.insert(bytes.end(), header, header + sizeof header);
  return bytes;
}

/// A pass of one packed record; `size`, if not 0, is what its header claims.
std::vector<std::byte> packed_pass(PageCodec codec, uint32_t pages, std::span<const std::byte> packed,
                                   size_t size = 0) {
  std::vector<std::byte> bytes(kPageRecordSize + kPackedSizeBytes);
  const std::span<std::byte> head(bytes);
  PageRecord record{.kind = PageRecord::Kind::packed, .address = 8192, .pages = pages, .codec = codec};
  record.memory.id = 3;
  StreamTotals totals;
  encode_record(record, head.first<kPageRecordSize>());
  encode_packed_size(size != 0 ? size : packed.size(), head.subspan<kPageRecordSize, kPackedSizeBytes>());
  totals.add(head.first<kPageRecordSize>(), pages);
  totals.add_packed_size(size != 0 ? size : packed.size());
  bytes.insert(bytes.end(), packed.begin(), packed.end());
  std::byte header[kPageRecordSize];
  encode_record(totals.end(), header);
  bytes.insert(bytes.end(), header, header + sizeof header);
  return bytes;
}

std::vector<std::byte> packed_zeros(const CodecChoice& choice, size_t pages) {
  const std::vector<std::byte> zeros(pages * kPageSize);
  std::vector<std::byte> out(packed_limit(zeros.size()));
  PagePacker packer;
  out.resize(packer.pack(choice, zeros, out));
  return out;
}

TEST(PackedRecords, BoundsAndAgreement) {
  for (const CodecChoice& choice : {CodecChoice{PageCodec::lz4, 0}, CodecChoice{PageCodec::zstd, 3}}) {
    const auto packed = packed_zeros(choice, 256);
    const CodecSet other{.lz4 = choice.codec == PageCodec::zstd, .zstd = choice.codec == PageCodec::lz4};
    EXPECT_TRUE(accepts(packed_pass(choice.codec, 256, packed)));
    EXPECT_FALSE(accepts(packed_pass(choice.codec, 256, packed), {}));
    EXPECT_FALSE(accepts(packed_pass(choice.codec, 256, packed), other));
    for (const uint32_t pages : {1u, 255u}) EXPECT_FALSE(accepts(packed_pass(choice.codec, pages, packed))) << pages;
    EXPECT_FALSE(accepts(packed_pass(choice.codec, 0, packed)));
    EXPECT_FALSE(accepts(packed_pass(choice.codec, 257, packed)));
    // Sizes that cannot be: nothing, as much as the pages, more than there is memory for.
    for (const size_t size : {size_t{1}, packed_limit(256 * kPageSize) + 1, size_t{1} << 20, size_t{0xffffffff}})
      EXPECT_FALSE(accepts(packed_pass(choice.codec, 256, packed, size))) << size;
    auto longer = packed;
    longer.resize(longer.size() + 1);
    EXPECT_FALSE(accepts(packed_pass(choice.codec, 256, longer)));
    EXPECT_FALSE(accepts(packed_pass(choice.codec, 256, std::span(packed).first(packed.size() - 1))));
  }
  EXPECT_FALSE(accepts(packed_pass(PageCodec::raw, 1, packed_zeros({PageCodec::lz4, 0}, 1))));
  EXPECT_FALSE(accepts(packed_pass(PageCodec{3}, 1, packed_zeros({PageCodec::lz4, 0}, 1))));
}

TEST(PageFailures, ZerosThatNobodyKnowsOf) {
  std::vector<std::byte> bytes(kPageRecordSize);
  encode_record({.kind = PageRecord::Kind::zeros, .address = 8192, .pages = 3},
                std::span(bytes).first<kPageRecordSize>());
  EXPECT_FALSE(accepts(bytes));
}

TEST(PageFuzz, EveryBitOfTheHeadersMatters) {
  const auto good = valid_pass();
  EXPECT_TRUE(accepts(good));
  for (size_t byte = 0; byte < kPageRecordSize; ++byte)
    for (const size_t at : {byte, byte + kPageRecordSize + kPageSize, good.size() - kPageRecordSize + byte}) {
      auto bad = good;
      bad[at] ^= std::byte{static_cast<unsigned char>(1 << byte % 8)};
      EXPECT_FALSE(accepts(bad)) << at;
    }
  for (size_t size = 0; size < good.size(); size += 1009) EXPECT_FALSE(accepts(std::span(good).first(size)));
}

TEST(PageFuzz, NoiseEndsInExceptions) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    auto noise = random_bytes(3000, seed);
    noise[0] = std::byte{1};
    noise[1] = static_cast<std::byte>(1 + seed % 2);
    noise[2] = noise[3] = std::byte{0};
    if (seed % 2 == 0) noise[5] = noise[6] = noise[7] = std::byte{0};
    EXPECT_FALSE(accepts(noise));
  }
}

TEST(PagePrefaces, RoundTripAndRefusals) {
  auto [a, b] = raw_pair();
  PagePreface preface{.index = 2, .count = 4};
  preface.session[3] = std::byte{9};
  send_page_preface(*a, preface, soon());
  const auto got = read_page_preface(*b, soon());
  ASSERT_TRUE(got);
  EXPECT_EQ(got->session, preface.session);
  EXPECT_EQ(got->index, 2);
  EXPECT_EQ(got->count, 4);
  FrameChannel control(raw_stream(Fd(::fcntl(a->fd(), F_DUPFD_CLOEXEC, 0))));
  control.send_preface(soon());
  EXPECT_FALSE(read_page_preface(*b, soon()));  // at once, though it is shorter
  send_page_preface(*a, {.index = 4, .count = 4}, soon());
  EXPECT_THROW(read_page_preface(*b, soon()), Corrupt);
  a->write(random_bytes(kPagePrefaceSize, 5));
  EXPECT_THROW(read_page_preface(*b, soon()), Corrupt);
}

}  // namespace
}  // namespace migrate

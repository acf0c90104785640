// Page streams from a hostile peer. First byte of an input: 0 records for a receiver; 1 an LZ4 block, 2 a zstd frame,
// for as many pages as the second byte says and one; 3 a preface; 4 what an operator types for --compress.
#include <sys/socket.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "fuzz.h"
#include "pageserver/page_codec.h"
#include "pageserver/page_records.h"
#include "pageserver/page_stream.h"

namespace migrate::fuzz {
namespace {

constexpr size_t kMostBytes = 64 << 10;  ///< fits into a socket's buffer

class CheckingSink : public PageSink {
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    const bool good = (memory.kind == MemoryId::Kind::task || memory.kind == MemoryId::Kind::shmem) &&
                      address % kPageSize == 0 && !data.empty() && data.size() % kPageSize == 0 &&
                      data.size() <= kMaxRecordPages * kPageSize && address < kMaxPageAddress &&
                      data.size() <= kMaxPageAddress - address;
    if (!good) std::abort();
  }
};

void receive(std::span<const std::byte> bytes) {
  int fds[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "socket pair");
  const Fd feeder(fds[0]);
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(raw_stream(Fd(fds[1])));
  if (::send(feeder.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return;
  ::shutdown(feeder.get(), SHUT_WR);
  CheckingSink sink;
  try {
    PageReceiver(std::move(streams), sink, {.codecs = {.lz4 = true, .zstd = true}}).receive();
  } catch (const Error&) {  // as it should be
  }
}

void unpack(PageCodec codec, size_t pages, std::span<const std::byte> bytes) {
  std::vector<std::byte> out(pages * kPageSize);
  if (PageUnpacker().unpack(codec, bytes, out) != nullptr || pages > 2) return;
  std::vector<std::byte> packed(packed_limit(out.size())), again(out.size());
  packed.resize(PagePacker().pack({codec, codec == PageCodec::zstd ? 1 : 0}, out, packed));
  if (packed.empty()) return;  // it would save too little
  demand(PageUnpacker().unpack(codec, packed, again) == nullptr && again == out, "pages that change on their way");
}

/// What there is to read of `bytes`, and then the end.
std::unique_ptr<Stream> stream_of(std::span<const std::byte> bytes) {
  int fds[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "socket pair");
  const Fd feeder(fds[0]);
  auto stream = raw_stream(Fd(fds[1]));
  check(::send(feeder.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), "fill", "a socket pair");
  return stream;
}

void read_preface(std::span<const std::byte> bytes) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(1));
  try {
    const auto preface = read_page_preface(*stream_of(bytes), deadline);
    if (!preface) return;
    demand(preface->count > 0 && preface->count <= kMaxPageStreams && preface->index < preface->count,
           "a stream without a number");
  } catch (const Error&) {  // as it should be
  }
}

/// As a sender makes it.
std::vector<std::byte> preface() {
  int fds[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "socket pair");
  const Fd other(fds[0]);
  const auto stream = raw_stream(Fd(fds[1]));
  send_page_preface(*stream, {.index = 1, .count = 3}, Deadline::in(std::chrono::seconds(1)));
  std::vector<std::byte> bytes(1 + kPagePrefaceSize, std::byte{3});
  check(::recv(other.get(), bytes.data() + 1, kPagePrefaceSize, 0), "read", "a preface");
  return bytes;
}

void read_choice(std::span<const std::byte> bytes) {
  const auto wanted = parse_compression({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!wanted || wanted->mode != Compression::Mode::fixed) return;
  const auto again = parse_compression(text_of(wanted->fixed));
  demand(again && again->fixed == wanted->fixed && wanted->fixed.level <= kMaxZstdLevel, "another choice");
}

/// A pass of two records, the second packed, as a sender makes it.
std::vector<std::byte> pass(const CodecChoice& choice) {
  std::vector<std::byte> pages(3 * kPageSize, std::byte{'x'});
  std::vector<std::byte> bytes(1 + kPageRecordSize);
  StreamTotals totals;
  PageRecord record{.memory = {MemoryId::Kind::task, 7}, .address = 4096, .pages = 1};
  encode_record(record, std::span(bytes).subspan<1, kPageRecordSize>());
  totals.add(std::span(bytes).subspan<1, kPageRecordSize>(), 1);
  bytes.resize(bytes.size() + kPageSize);

  std::byte header[kPageRecordSize], size[kPackedSizeBytes];
  record = {.kind = PageRecord::Kind::packed, .memory = {MemoryId::Kind::shmem, 8}, .pages = 3, .sequence = 1};
  record.codec = choice.codec;
  encode_record(record, header);
  std::vector<std::byte> packed(packed_limit(pages.size()));
  packed.resize(PagePacker().pack(choice, pages, packed));
  encode_packed_size(packed.size(), size);
  totals.add(header, 3);
  totals.add_packed_size(packed.size());
  bytes.insert(bytes.end(), header, header + sizeof header);
  bytes.insert(bytes.end(), size, size + sizeof size);
  bytes.insert(bytes.end(), packed.begin(), packed.end());

  encode_record(totals.end(), header);
  bytes.insert(bytes.end(), header, header + sizeof header);
  return bytes;
}

std::vector<std::byte> packed_pages(const CodecChoice& choice) {
  std::vector<std::byte> pages(2 * kPageSize);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::byte>(i * i / 97 % 23);
  std::vector<std::byte> bytes(2 + packed_limit(pages.size()));
  bytes[0] = static_cast<std::byte>(choice.codec);
  bytes[1] = std::byte{1};
  bytes.resize(2 + PagePacker().pack(choice, pages, std::span(bytes).subspan(2)));
  return bytes;
}

}  // namespace

const Target kTarget{"page_stream_fuzz", false};

void run(std::span<const std::byte> input) {
  if (input.size() < 2 || input.size() > kMostBytes) return;
  const auto kind = std::to_integer<unsigned>(input[0]);
  if (kind == 0) return receive(input.subspan(1));
  if (kind == 3) return read_preface(input.subspan(1));
  if (kind == 4) return read_choice(input.subspan(1));
  if (kind <= 2) unpack(static_cast<PageCodec>(kind), 1 + std::to_integer<size_t>(input[1]), input.subspan(2));
}

std::vector<std::vector<std::byte>> seeds() {
  const CodecChoice lz4{PageCodec::lz4, 0}, zstd{PageCodec::zstd, 1};
  std::vector<std::vector<std::byte>> all{pass(lz4), pass(zstd), packed_pages(lz4), packed_pages(zstd), preface()};
  for (const char* text : {"off", "auto", "lz4", "zstd", "zstd:7"}) {
    const auto bytes = as_bytes_of(std::string_view(text));
    all.emplace_back(1, std::byte{4}).insert(all.back().end(), bytes.begin(), bytes.end());
  }
  return all;
}

}  // namespace migrate::fuzz

#include "core/memory/page_files.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "core/base/io_ring.h"
#include "core/base/types.h"

namespace migrate {
namespace {

std::string subject(MemoryId memory, uint64_t address) {
  char hex[32];
  std::snprintf(hex, sizeof hex, "0x%llx", static_cast<unsigned long long>(address));
  return (memory.kind == MemoryId::Kind::task ? "memory of task " : "shared memory object ") +
         std::to_string(memory.id) + " at " + hex;
}

/// What was read, from its beginning.
struct Got {
  size_t bytes = 0;
  int error = 0;
};

/// Carries memories into a store. What comes next is read while pages that were read are looked through and stored.
class MemoryWriter {
 public:
  explicit MemoryWriter(PageStore& store) : store_(store), ring_(PageStore::kHeld) {}

  /// Starts the next memory; ended by finish().
  void begin(const PageSource& source) {
    source_ = &source;
    stored_.clear();
    written_ = 0;
  }
  void add(const PageRun& run) {
    for (uint64_t done = 0; done < run.pages;) {
      Piece& piece = piece_with_room();
      const size_t bytes = static_cast<size_t>(
          std::min((run.pages - done) * kPageSize, uint64_t{piece.buffer.bytes().size() - piece.used}));
      read({.address = run.address + done * kPageSize, .bytes = bytes, .at = piece.used, .zero_ok = run.zero_ok},
           piece);
      done += bytes / kPageSize;
    }
  }
  void in_parent(const PageSet::Range& range) {
    if (pieces_.empty()) pieces_.emplace_back();
    pieces_.back().parts.push_back({.address = range.start, .bytes = range.end - range.start, .in_parent = true});
  }
  void finish() {
    while (!pieces_.empty()) store_first();
  }
  uint64_t written() const { return written_; }
  PageSet& stored() { return stored_; }

 private:
  struct Part {
    uint64_t address = 0;
    uint64_t bytes = 0;
    size_t at = 0;  ///< in the buffer
    bool zero_ok = false;
    bool in_parent = false;
    Got got{};
  };
  /// What is stored in one go.
  struct Piece {
    PageFileBuffer buffer;
    size_t used = 0;  ///< of it
    std::vector<Part> parts;
    size_t being_read = 0;
  };

  Piece& piece_with_room() {
    if (!pieces_.empty() && pieces_.back().used < pieces_.back().buffer.bytes().size()) return pieces_.back();
    // What is there already is stored from the processor's cache; plain calls need no second buffer.
    if (!pieces_.empty() && pieces_.front().being_read == 0) store_first();
    while (pieces_.size() >= PageStore::kHeld) store_first();
    if (pieces_.empty() || pieces_.back().used != 0) pieces_.emplace_back();
    pieces_.back().buffer = store_.buffer();
    return pieces_.back();
  }

  void read(const Part& part, Piece& piece) {
    const iovec into{piece.buffer.bytes().data() + part.at, part.bytes};
    piece.used += part.bytes;
    piece.parts.push_back(part);
    ++piece.being_read;
    const uint64_t number = first_ + pieces_.size() - 1;
    ring_.read(number << kPartBits | (piece.parts.size() - 1), source_->fd.get(), {&into, 1}, part.address);
    while (const auto done = ring_.poll()) was_read(*done);
  }
  void was_read(const IoRing::Done& done) {
    Piece& piece = pieces_[(done.tag >> kPartBits) - first_];
    piece.parts[done.tag & ((uint64_t{1} << kPartBits) - 1)].got = {done.bytes, done.error};
    --piece.being_read;
  }

  /// The pages of the oldest piece.
  void store_first() {
    Piece& piece = pieces_.front();
    while (piece.being_read != 0) was_read(ring_.wait());
    placed_.clear();
    for (const Part& part : piece.parts) {
      if (part.in_parent) {
        placed_.push_back({part.address, part.bytes / kPageSize, nullptr});
        stored_.append(part.address, part.address + part.bytes);
      } else {
        place(part.address, piece.buffer.bytes().subspan(part.at, part.bytes), part.got, part.zero_ok);
      }
    }
    store_.put(std::move(piece.buffer), placed_);
    pieces_.pop_front();
    ++first_;
  }

  /// What there is of `data`, of which `got` was read.
  void place(uint64_t address, std::span<std::byte> data, Got got, bool zero_ok) {
    for (;;) {
      if (got.bytes == data.size()) return place(address, data, zero_ok);
      const bool gone = got.error == EIO || got.error == EFAULT || got.error == ESRCH;
      if (got.error != 0 && !(source_->may_vanish && gone))
        throw Error("read", subject(source_->memory, address + got.bytes), got.error);
      if (source_->memory.kind == MemoryId::Kind::shmem && data.size() - got.bytes < kPageSize) {
        // The last page of an object may reach beyond its end.
        std::fill(data.begin() + static_cast<std::ptrdiff_t>(got.bytes), data.end(), std::byte{0});
        return place(address, data, zero_ok);
      }
      if (!source_->may_vanish) throw Error("read", subject(source_->memory, address + got.bytes), EIO);
      // A hole in a running task; what lies behind it may still be there.
      const size_t whole = static_cast<size_t>(page_floor(got.bytes));
      place(address, data.first(whole), zero_ok);
      if (whole + kPageSize >= data.size()) return;
      address += whole + kPageSize;
      data = data.subspan(whole + kPageSize);
      got = read_now(data, address);
    }
  }
  Got read_now(std::span<std::byte> data, uint64_t address) const {
    Got got;
    while (got.bytes < data.size()) {
      const ssize_t n = ::pread(source_->fd.get(), data.data() + got.bytes, data.size() - got.bytes,
                                static_cast<off_t>(address + got.bytes));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) got.error = errno;
      if (n <= 0) break;
      got.bytes += static_cast<size_t>(n);
    }
    return got;
  }

  void place(uint64_t address, std::span<const std::byte> data, bool zero_ok) {
    for (size_t from = 0; from < data.size();) {
      size_t to = from;
      while (to < data.size() && (!zero_ok || !all_zero(data.subspan(to, kPageSize)))) to += kPageSize;
      if (to > from) {
        placed_.push_back({address + from, (to - from) / kPageSize, data.data() + from});
        stored_.append(address + from, address + to);
        written_ += (to - from) / kPageSize;
      }
      from = to == from ? from + kPageSize : to;
    }
  }

  static constexpr unsigned kPartBits = 32;

  PageStore& store_;
  const PageSource* source_ = nullptr;
  std::vector<PlacedPages> placed_;
  uint64_t written_ = 0;
  PageSet stored_;
  uint64_t first_ = 0;        ///< number of the oldest piece
  std::deque<Piece> pieces_;  ///< the last one is being filled
  IoRing ring_;               ///< last, so that it ends before what it reads into
};

}  // namespace

std::string pagemap_name(MemoryId memory) {
  return image_name(memory.kind == MemoryId::Kind::task ? "pagemap" : "pagemap-shmem", memory.id);
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

WrittenPages write_pages(std::span<const PageSource> memories, const PagesByMemory& in_parent, PageStore& store) {
  MemoryWriter writer(store);
  const PageSet none;
  WrittenPages result;
  for (const PageSource& source : memories) {
    const auto of_parent = in_parent.find(source.memory);
    const PageSet& unchanged = of_parent == in_parent.end() ? none : of_parent->second;
    if (!store.open(source.memory) && !unchanged.empty())
      throw Refusal(pagemap_name(source.memory) + " has no parent where its pages go",
                    "give --prev-images-dir there too, or dump without it");
    writer.begin(source);
    auto at = unchanged.ranges().begin();
    const auto end = unchanged.ranges().end();
    for (const PageRun& run : source.runs) {
      for (; at != end && at->start < run.address; ++at) writer.in_parent(*at);
      writer.add(run);
    }
    for (; at != end; ++at) writer.in_parent(*at);
    writer.finish();
    result.written += writer.written();
    result.in_parent += unchanged.pages();
    result.stored.emplace(source.memory, std::move(writer.stored()));
  }
  store.finish();
  return result;
}

uint64_t write_pages(std::span<PageSource> memories, ImageSet& images, int dirfd) {
  PageFolder folder(dirfd, images, false);
  return write_pages(memories, {}, folder).written;
}

}  // namespace migrate

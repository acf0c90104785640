#include "core/image/bounded_parse.h"

#include <google/protobuf/arena.h>
#include <google/protobuf/io/zero_copy_stream.h>
#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <climits>

namespace migrate {
namespace {

/// Two bytes of wire can be an element of a list: the largest messages in our lists have 300 bytes, and a pointer.
constexpr size_t kWorstGrowth = 256;

/// Gives `bytes` piece by piece, for as long as the arena that they become objects in is within its budget.
class WatchedStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  WatchedStream(std::span<const std::byte> bytes, const google::protobuf::Arena& arena)
      : bytes_(bytes), arena_(arena), budget_(parse_budget(bytes.size())) {}

  bool Next(const void** data, int* size) override {
    exceeded_ = exceeded_ || arena_.SpaceAllocated() > budget_;
    if (exceeded_ || at_ == bytes_.size()) return false;
    const size_t piece = std::min(kPiece, bytes_.size() - at_);
    *data = bytes_.data() + at_;
    *size = static_cast<int>(piece);
    at_ += piece;
    return true;
  }
  void BackUp(int count) override { at_ -= static_cast<size_t>(count); }
  bool Skip(int count) override {
    const size_t step = std::min(static_cast<size_t>(count), bytes_.size() - at_);
    at_ += step;
    return step == static_cast<size_t>(count);
  }
  int64_t ByteCount() const override { return static_cast<int64_t>(at_); }
  /// The end of the stream was not the end of the bytes.
  bool exceeded() const { return exceeded_; }

 private:
  static constexpr size_t kPiece = 4096;
  std::span<const std::byte> bytes_;
  const google::protobuf::Arena& arena_;
  size_t budget_, at_ = 0;
  bool exceeded_ = false;
};

/// In an arena, whose size can be asked for while it grows, unlike that of a message on the heap.
bool stays_within_budget(const google::protobuf::MessageLite& kind, std::span<const std::byte> bytes) {
  google::protobuf::Arena arena;
  google::protobuf::MessageLite* trial = kind.New(&arena);
  WatchedStream stream(bytes, arena);
  return trial->ParsePartialFromBoundedZeroCopyStream(&stream, static_cast<int>(bytes.size())) && !stream.exceeded() &&
         arena.SpaceAllocated() <= parse_budget(bytes.size());
}

}  // namespace

bool parse_bounded(google::protobuf::MessageLite& message, std::span<const std::byte> bytes) {
  message.Clear();
  if (bytes.size() > INT_MAX) return false;
  if (bytes.size() > parse_budget(0) / kWorstGrowth && !stays_within_budget(message, bytes)) return false;
  // The partial parse, since the other one prints to standard error what is not ours to print.
  return message.ParsePartialFromArray(bytes.data(), static_cast<int>(bytes.size())) && message.IsInitialized();
}

}  // namespace migrate

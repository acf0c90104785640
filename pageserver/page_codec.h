// Compression of the pages of one record, lz4 or zstd. A record is packed by itself: records may go over any stream,
// and the receiver's memory for one is bounded by its page count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace migrate {

/// The numbers are on the wire.
enum class PageCodec : uint8_t { raw = 0, lz4 = 1, zstd = 2 };

/// Which codecs may be used besides raw, which always may.
struct CodecSet {
  bool lz4 = false, zstd = false;
  bool contains(PageCodec codec) const {
    return codec == PageCodec::raw || (codec == PageCodec::lz4 ? lz4 : codec == PageCodec::zstd && zstd);
  }
  bool any() const { return lz4 || zstd; }
};

/// A codec and how hard it tries.
struct CodecChoice {
  PageCodec codec = PageCodec::raw;
  int level = 0;  ///< zstd: 1..kMaxZstdLevel; else 0
  bool operator==(const CodecChoice&) const = default;
};
inline constexpr int kMaxZstdLevel = 19;
/// "raw", "lz4", "zstd:3".
std::string text_of(const CodecChoice& choice);

/// What the operator wants: no compression, one choice, or whatever measures best.
struct Compression {
  enum class Mode { off, automatic, fixed } mode = Mode::off;
  CodecChoice fixed;  ///< for Mode::fixed
};
/// "off", "auto", "lz4", "zstd", "zstd:7"; nullopt for anything else.
std::optional<Compression> parse_compression(std::string_view text);
std::string text_of(const Compression& compression);

/// Packs; one thread at a time.
class PagePacker {
 public:
  PagePacker();
  ~PagePacker();
  /// Packs `pages` into the front of `out` and returns the size; 0 if it does not fit, that is saves too little.
  size_t pack(const CodecChoice& choice, std::span<const std::byte> pages, std::span<std::byte> out);

 private:
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

/// Unpacks what a hostile peer may have made; one thread at a time.
class PageUnpacker {
 public:
  PageUnpacker();
  ~PageUnpacker();
  /// Fills `pages` exactly, or returns the reason why `packed` is damaged (a frame of another size, with something
  /// behind it, with a dictionary); nullptr: done. Takes no memory that depends on `packed`.
  const char* unpack(PageCodec codec, std::span<const std::byte> packed, std::span<std::byte> pages);

 private:
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

}  // namespace migrate

#include "pageserver/page_codec.h"

#include <lz4.h>
#include <zstd.h>

#include <charconv>
#include <new>
#include <vector>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr int kDefaultZstdLevel = 1;
/// A record has at most 1 MiB of pages. The one-shot decoder needs no window of its own; this bounds it all the same.
constexpr int kWindowLogMax = 20;

struct FreeCompressor {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

}  // namespace

std::string text_of(const CodecChoice& choice) {
  if (choice.codec == PageCodec::zstd) return "zstd:" + std::to_string(choice.level);
  return choice.codec == PageCodec::lz4 ? "lz4" : "raw";
}

std::string text_of(const Compression& compression) {
  if (compression.mode == Compression::Mode::fixed) return text_of(compression.fixed);
  return compression.mode == Compression::Mode::automatic ? "auto" : "off";
}

std::optional<Compression> parse_compression(std::string_view text) {
  using Mode = Compression::Mode;
  if (text == "off") return Compression{Mode::off, {}};
  if (text == "auto") return Compression{Mode::automatic, {}};
  if (text == "lz4") return Compression{Mode::fixed, {PageCodec::lz4, 0}};
  if (text == "zstd") return Compression{Mode::fixed, {PageCodec::zstd, kDefaultZstdLevel}};
  if (!text.starts_with("zstd:")) return std::nullopt;
  text.remove_prefix(5);
  int level = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), level);
  if (error != std::errc() || end != text.data() + text.size() || level < 1 || level > kMaxZstdLevel)
    return std::nullopt;
  return Compression{Mode::fixed, {PageCodec::zstd, level}};
}

struct PagePacker::Contexts {
  std::vector<std::byte> lz4_state;
  std::unique_ptr<ZSTD_CCtx, FreeCompressor> zstd;
  int zstd_level = 0;
};

PagePacker::PagePacker() : contexts_(std::make_unique<Contexts>()) {}
PagePacker::~PagePacker() = default;

size_t PagePacker::pack(const CodecChoice& choice, std::span<const std::byte> pages, std::span<std::byte> out) {
  Contexts& c = *contexts_;
  if (choice.codec == PageCodec::lz4) {
    if (c.lz4_state.empty()) c.lz4_state.resize(static_cast<size_t>(LZ4_sizeofState()));
    const int size = LZ4_compress_fast_extState(c.lz4_state.data(), reinterpret_cast<const char*>(pages.data()),
                                                reinterpret_cast<char*>(out.data()), static_cast<int>(pages.size()),
                                                static_cast<int>(out.size()), 1);
    return size > 0 ? static_cast<size_t>(size) : 0;
  }
  if (choice.codec != PageCodec::zstd) return 0;
  if (!c.zstd) c.zstd.reset(ZSTD_createCCtx());
  if (!c.zstd) throw std::bad_alloc();
  if (c.zstd_level != choice.level) {
    ZSTD_CCtx_setParameter(c.zstd.get(), ZSTD_c_compressionLevel, choice.level);
    c.zstd_level = choice.level;
  }
  const size_t size = ZSTD_compress2(c.zstd.get(), out.data(), out.size(), pages.data(), pages.size());
  return ZSTD_isError(size) != 0 ? 0 : size;
}

struct PageUnpacker::Contexts {
  std::unique_ptr<ZSTD_DCtx, FreeDecompressor> zstd;
};

PageUnpacker::PageUnpacker() : contexts_(std::make_unique<Contexts>()) {}
PageUnpacker::~PageUnpacker() = default;

const char* PageUnpacker::unpack(PageCodec codec, std::span<const std::byte> packed, std::span<std::byte> pages) {
  if (codec == PageCodec::lz4) {
    // Succeeds only if the input ends exactly where a block ends.
    const int size =
        LZ4_decompress_safe(reinterpret_cast<const char*>(packed.data()), reinterpret_cast<char*>(pages.data()),
                            static_cast<int>(packed.size()), static_cast<int>(pages.size()));
    return size >= 0 && static_cast<size_t>(size) == pages.size() ? nullptr : "pages packed with lz4 are damaged";
  }
  if (codec != PageCodec::zstd) return "unknown codec";
  // Skippable frames say 0, frames that hide their size something huge.
  if (ZSTD_getFrameContentSize(packed.data(), packed.size()) != pages.size())
    return "a zstd frame is not of the size of its pages";
  if (ZSTD_findFrameCompressedSize(packed.data(), packed.size()) != packed.size())
    return "something stands behind a zstd frame, or a part is missing";
  if (ZSTD_getDictID_fromFrame(packed.data(), packed.size()) != 0) return "a zstd frame wants a dictionary";
  Contexts& c = *contexts_;
  if (!c.zstd) {
    c.zstd.reset(ZSTD_createDCtx());
    if (!c.zstd) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(c.zstd.get(), ZSTD_d_windowLogMax, kWindowLogMax);
  }
  const size_t size = ZSTD_decompressDCtx(c.zstd.get(), pages.data(), pages.size(), packed.data(), packed.size());
  return ZSTD_isError(size) == 0 && size == pages.size() ? nullptr : "pages packed with zstd are damaged";
}

}  // namespace migrate

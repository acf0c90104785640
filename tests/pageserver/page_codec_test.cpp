// Packed pages: what is packed comes back, and what a hostile peer makes is refused.
#include "pageserver/page_codec.h"

#include <lz4.h>
#include <zstd.h>

#include <cstring>

#include "core/memory/page_io.h"
#include "pageserver/page_records.h"
#include "testing.h"

namespace migrate {
namespace {

using namespace migrate::testing;

constexpr CodecChoice kLz4{PageCodec::lz4, 0}, kZstd{PageCodec::zstd, 1};

/// Pages that pack well.
std::vector<std::byte> text_pages(size_t pages, unsigned seed = 1) {
  std::string text;
  while (text.size() < pages * kPageSize)
    text += "key:" + std::to_string((seed = seed * 1664525 + 1013904223) % 9973) + " and so on; ";
  const auto bytes = std::as_bytes(std::span(text)).first(pages * kPageSize);
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> packed(const CodecChoice& choice, std::span<const std::byte> pages) {
  std::vector<std::byte> out(packed_limit(pages.size()));
  PagePacker packer;
  out.resize(packer.pack(choice, pages, out));
  return out;
}

const char* why_not(PageCodec codec, std::span<const std::byte> bytes, size_t pages) {
  std::vector<std::byte> out(pages * kPageSize);
  PageUnpacker unpacker;
  return unpacker.unpack(codec, bytes, out);
}

TEST(PageCodecs, PackedPagesComeBack) {
  for (const CodecChoice& choice : {kLz4, kZstd, CodecChoice{PageCodec::zstd, 7}})
    for (const size_t pages : {1, 2, 32, 256}) {
      const auto content = text_pages(pages, static_cast<unsigned>(pages));
      const auto small = packed(choice, content);
      ASSERT_GT(small.size(), 0u);
      EXPECT_LT(small.size(), content.size() * 3 / 4);
      std::vector<std::byte> out(content.size());
      PageUnpacker unpacker;
      EXPECT_EQ(unpacker.unpack(choice.codec, small, out), nullptr);
      EXPECT_EQ(out, content);
    }
}

TEST(PageCodecs, NoiseIsNotPacked) {
  const auto noise = random_bytes(32 * kPageSize, 5);
  for (const CodecChoice& choice : {kLz4, kZstd, CodecChoice{}}) EXPECT_TRUE(packed(choice, noise).empty());
}

TEST(PageCodecs, DamageIsRefused) {
  const auto content = text_pages(32);
  for (const CodecChoice& choice : {kLz4, kZstd}) {
    const PageCodec codec = choice.codec;
    const auto good = packed(choice, content);
    EXPECT_EQ(why_not(codec, good, 32), nullptr);
    for (const size_t pages : {1, 31, 33, 256}) EXPECT_NE(why_not(codec, good, pages), nullptr) << pages;
    for (size_t size = 0; size < good.size(); size += 7)
      EXPECT_NE(why_not(codec, std::span(good).first(size), 32), nullptr);
    auto longer = good;
    longer.push_back({});
    EXPECT_NE(why_not(codec, longer, 32), nullptr);
    longer = good;
    longer.insert(longer.end(), good.begin(), good.end());
    EXPECT_NE(why_not(codec, longer, 32), nullptr);
    EXPECT_NE(why_not(codec == PageCodec::lz4 ? PageCodec::zstd : PageCodec::lz4, good, 32), nullptr);
    EXPECT_NE(why_not(PageCodec::raw, good, 32), nullptr);
    for (size_t at = 0; at < good.size(); at += 3) {  // damaged contents are another's care; no harm must come of it
      auto bad = good;
      bad[at] ^= std::byte{0x41};
      why_not(codec, bad, 32);
    }
  }
}

TEST(PageCodecs, FramesThatHideTheirSizeAndBombsAreRefused) {
  // A frame without its size, as streaming compressors make them.
  const auto content = text_pages(4);
  std::vector<std::byte> frame(ZSTD_compressBound(content.size()));
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
  frame.resize(ZSTD_compress2(context, frame.data(), frame.size(), content.data(), content.size()));
  ZSTD_freeCCtx(context);
  EXPECT_NE(why_not(PageCodec::zstd, frame, 4), nullptr);
  // 256 MiB of zeros in some kilobytes.
  const std::vector<std::byte> zeros(256 << 20);
  std::vector<std::byte> bomb(ZSTD_compressBound(zeros.size()));
  bomb.resize(ZSTD_compress(bomb.data(), bomb.size(), zeros.data(), zeros.size(), 1));
  EXPECT_NE(why_not(PageCodec::zstd, bomb, 256), nullptr);
  std::vector<std::byte> lz4_bomb(static_cast<size_t>(LZ4_compressBound(8 << 20)));
  lz4_bomb.resize(static_cast<size_t>(LZ4_compress_default(reinterpret_cast<const char*>(zeros.data()),
                                                           reinterpret_cast<char*>(lz4_bomb.data()), 8 << 20,
                                                           static_cast<int>(lz4_bomb.size()))));
  EXPECT_NE(why_not(PageCodec::lz4, lz4_bomb, 256), nullptr);
  // A skippable frame before the right one.
  const auto good = packed(kZstd, content);
  std::vector<std::byte> skippable(8 + 16);
  const uint32_t head[2] = {0x184d2a50, 16};
  std::memcpy(skippable.data(), head, sizeof head);
  EXPECT_NE(why_not(PageCodec::zstd, skippable, 4), nullptr);
  skippable.insert(skippable.end(), good.begin(), good.end());
  EXPECT_NE(why_not(PageCodec::zstd, skippable, 4), nullptr);
}

TEST(PageCodecs, Options) {
  using Mode = Compression::Mode;
  EXPECT_EQ(parse_compression("off")->mode, Mode::off);
  EXPECT_EQ(parse_compression("auto")->mode, Mode::automatic);
  EXPECT_EQ(text_of(parse_compression("lz4")->fixed), "lz4");
  EXPECT_EQ(text_of(parse_compression("zstd")->fixed), "zstd:1");
  EXPECT_EQ(text_of(parse_compression("zstd:19")->fixed), "zstd:19");
  for (const char* bad : {"", "gzip", "lz4:3", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:1x", "zstd:99999999999"})
    EXPECT_FALSE(parse_compression(bad)) << bad;
}

}  // namespace
}  // namespace migrate

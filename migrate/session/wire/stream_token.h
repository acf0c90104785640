// The token by which a page stream says whose it is, in clear text before TLS: see destination/daemon_link.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>

namespace migrate {

using StreamToken = std::array<std::byte, 16>;

/// What a page stream's connection begins with: {"MIGT", token}.
inline constexpr char kStreamTokenMagic[4] = {'M', 'I', 'G', 'T'};
inline constexpr size_t kStreamTokenSize = sizeof kStreamTokenMagic + std::tuple_size_v<StreamToken>;

/// `token`: as it came in Begun, 16 bytes.
inline std::string encode_stream_token(const std::string& token) {
  return std::string(kStreamTokenMagic, sizeof kStreamTokenMagic) + token;
}

/// nullopt: that is something else.
inline std::optional<StreamToken> decode_stream_token(std::span<const char, kStreamTokenSize> bytes) {
  if (std::memcmp(bytes.data(), kStreamTokenMagic, sizeof kStreamTokenMagic) != 0) return {};
  StreamToken token;
  std::memcpy(token.data(), bytes.data() + sizeof kStreamTokenMagic, token.size());
  return token;
}

}  // namespace migrate

// Changes a protobuf message so that it still parses: another number, a field gone, doubled or moved, at any depth.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace migrate::fuzz {

using Bytes = std::vector<std::byte>;
using Random = std::mt19937_64;

/// nullopt if `message` is no message.
std::optional<Bytes> mutate_wire(std::span<const std::byte> message, Random& random, int depth = 0);
/// A number at some bound, or near `now`.
uint64_t interesting_number(uint64_t now, Random& random);
/// One record (records.h) of `input` changed, doubled, taken out or moved.
Bytes mutate_records(std::span<const std::byte> input, Random& random);

}  // namespace migrate::fuzz

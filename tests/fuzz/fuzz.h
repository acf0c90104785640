// A fuzz target: what it does with an input, and inputs to begin with.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace migrate::fuzz {

/// Must come back from any input, without a finding of the sanitizers and without abort().
void run(std::span<const std::byte> input);
/// Valid inputs, which are mutated.
std::vector<std::vector<std::byte>> seeds();

}  // namespace migrate::fuzz

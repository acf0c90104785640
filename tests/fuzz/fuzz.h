// A fuzz target: what it does with an input, and inputs to begin with.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

namespace migrate::fuzz {

struct Target {
  const char* name;
  bool records;  ///< inputs are records.h's, and mutated as such
};
extern const Target kTarget;

/// Must come back from any input, without a finding of the sanitizers and without abort().
void run(std::span<const std::byte> input);
/// Valid inputs, which are mutated; beside them stand the files in seeds/TARGET.
std::vector<std::vector<std::byte>> seeds();

/// What a reader let through must be so.
inline void demand(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "let through: %s\n", what);
  std::abort();
}

}  // namespace migrate::fuzz

// Random tests of dirty tracking: which seeds, and the proof that a rule taken out is noticed.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace migrate {

inline uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// MIGRATE_TRACK_SEEDS=N: N of them (else `otherwise`), from MIGRATE_TRACK_FIRST on.
inline std::vector<uint64_t> track_seeds(uint64_t otherwise) {
  const uint64_t first = number_from("MIGRATE_TRACK_FIRST", 1);
  std::vector<uint64_t> seeds(number_from("MIGRATE_TRACK_SEEDS", otherwise));
  for (size_t i = 0; i < seeds.size(); ++i) seeds[i] = first + i;
  return seeds;
}

/// Runs `track` on seeds until it tells a difference; prints a row "| WHICH | RULE | SEED | DIFFERENCE |".
template <class Track>
void expect_noticed(const char* which, const char* rule, uint64_t most, Track track) {
  uint64_t seed = 1;
  std::string difference;
  while (seed <= most && difference.empty()) difference = track(seed++);
  EXPECT_NE(difference, "") << which << " without the rule: " << rule;
  std::printf("| %s | %s | %lu | %s |\n", which, rule, static_cast<unsigned long>(seed - 1),
              difference.empty() ? "**not noticed**" : difference.c_str());
  std::fflush(stdout);
}

}  // namespace migrate

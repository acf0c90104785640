// A program that does everything to its missing memory that memory lets be done, and knows every byte of it.
#pragma once

#include "tests/lazypages/lazy_program.h"
#include "tests/workloads/memory_walk.h"

namespace migrate::lazy_testing {

class Walk : public memory_walk::Walk {
 public:
  /// `first`: what number the page at `base` was at the source.
  Walk(char* base, uint64_t pages, uint64_t seed, Talk& talk, uint64_t first = 0)
      : memory_walk::Walk(as_at_source(base, pages, first), seed, around(talk)) {}

 private:
  static std::vector<memory_walk::Area> as_at_source(char* base, uint64_t pages, uint64_t first) {
    memory_walk::Area all{base, {}};
    for (uint64_t i = first; i < first + pages; ++i)
      all.pages.push_back(exists(i) ? memory_walk::Page::holding(i) : memory_walk::Page{});
    return {all};
  }
  static memory_walk::Surroundings around(Talk& talk) {
    memory_walk::Surroundings around;
    around.progress = &talk.progress;
    around.trouble = [&talk](const std::string& what) {
      if (talk.trouble[0] == 0) std::snprintf(talk.trouble.data(), talk.trouble.size(), "%s", what.c_str());
    };
    return around;
  }
};

inline constexpr uint64_t kChanged = 24;
/// Two threads that change their halves of kChanged pages, and fork, until they are told that it is enough.
inline int change_until_enough(char* base, Talk& talk, uint64_t round) {
  constexpr uint64_t kHalf = kChanged / 2;
  std::mt19937_64 random(round);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (uint64_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t, seed = random()] {
      Walk walk(base + t * kHalf * kPageSize, kHalf, seed, talk, t * kHalf);
      while (!talk.enough && walk.good()) {
        walk.step();
        walk.have(kHalf);
        walk.reap(WNOHANG);
      }
      wrong += walk.run(20, round % 8 == 0 ? 0 : 2);
    });
  }
  for (std::thread& t : threads) t.join();
  return wrong == 0 ? 0 : 1;
}

}  // namespace migrate::lazy_testing

// Runs a fuzz target. Built with -fsanitize=fuzzer (cmake -DMIGRATE_FUZZER=ON, clang): libFuzzer chooses the inputs.
// Else
//   TARGET [RUNS [SEED]]     runs on mutated seeds, the same each time
//   TARGET FILE...           runs on these inputs
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz.h"

#ifdef MIGRATE_FUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  migrate::fuzz::run(std::as_bytes(std::span(data, size)));
  return 0;
}

#else

namespace {

using Input = std::vector<std::byte>;

constexpr uint32_t kNumbers[] = {0,     1,      0x7f,   0x80,     0xff,       0x100,
                                 0xfff, 0x1000, 0xffff, 0x100000, 0x7fffffff, 0xffffffff};

/// One to four changes: bits, bytes, numbers that are at a bound, pieces lost, doubled or from another seed.
Input mutated(const std::vector<Input>& seeds, std::mt19937_64& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  Input input = seeds[below(seeds.size())];
  for (size_t changes = 1 + below(4); changes > 0 && input.size() > 8; --changes) {
    // Headers are few bytes of many: half of the changes go to the first ones.
    const size_t at = below(random() % 2 == 0 ? std::min<size_t>(input.size(), 80) : input.size());
    const auto place = input.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(6)) {
      case 0:
        *place ^= static_cast<std::byte>(1U << below(8));
        break;
      case 1:
        *place = static_cast<std::byte>(random());
        break;
      case 2: {
        const uint32_t number = kNumbers[below(std::size(kNumbers))];
        std::memcpy(&*place, &number, std::min(sizeof number, input.size() - at));
        break;
      }
      case 3:
        input.erase(place, place + static_cast<std::ptrdiff_t>(std::min(input.size() - at, 1 + below(64))));
        break;
      case 4: {
        const Input piece(place, place + static_cast<std::ptrdiff_t>(std::min(input.size() - at, 1 + below(64))));
        input.insert(place, piece.begin(), piece.end());
        break;
      }
      default:
        input.resize(at);
    }
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  char* end = nullptr;
  const unsigned long runs = argc > 1 ? std::strtoul(argv[1], &end, 10) : 20000;
  if (end != nullptr && *end != '\0') {
    for (int i = 1; i < argc; ++i) {
      std::ifstream file(argv[i], std::ios::binary);
      const std::string text((std::istreambuf_iterator<char>(file)), {});
      migrate::fuzz::run(std::as_bytes(std::span(text)));
    }
    return 0;
  }
  std::mt19937_64 random(argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1);
  const std::vector<Input> seeds = migrate::fuzz::seeds();
  for (const Input& seed : seeds) migrate::fuzz::run(seed);
  for (unsigned long i = 0; i < runs; ++i) {
    const Input input = mutated(seeds, random);
    migrate::fuzz::run(input);
  }
  std::printf("%lu runs\n", runs);
  return 0;
}

#endif

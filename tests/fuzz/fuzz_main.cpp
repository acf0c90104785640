// Runs a fuzz target. Built with -fsanitize=fuzzer (preset `fuzz`, clang): libFuzzer chooses the inputs;
// MIGRATE_WRITE_SEEDS=FOLDER writes the seeds there and ends. Else
//   TARGET [RUNS [SEED]]     runs on mutated seeds, the same each time
//   TARGET FILE...           runs on these inputs
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz.h"
#include "wire_mutator.h"

namespace {

using Input = std::vector<std::byte>;
using migrate::fuzz::Random;

Input read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// Those of the target and of the files beside it, in a fixed order.
std::vector<Input> all_seeds() {
  std::vector<Input> all = migrate::fuzz::seeds();
  std::vector<std::filesystem::path> files;
  const std::filesystem::path folder = std::string(MIGRATE_FUZZ_SEEDS) + migrate::fuzz::kTarget.name;
  if (std::filesystem::is_directory(folder))
    for (const auto& file : std::filesystem::directory_iterator(folder)) files.push_back(file.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) all.push_back(read_file(file));
  return all;
}

}  // namespace

#ifdef MIGRATE_FUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  migrate::fuzz::run(std::as_bytes(std::span(data, size)));
  return 0;
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* folder = std::getenv("MIGRATE_WRITE_SEEDS");
  if (folder == nullptr) return 0;
  size_t number = 0;
  for (const Input& seed : all_seeds()) {
    std::ofstream file(std::string(folder) + "/seed-" + std::to_string(number++), std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
  }
  std::exit(0);
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  Random random(seed);
  if (!migrate::fuzz::kTarget.records || random() % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
  Input input = migrate::fuzz::mutate_records(std::as_bytes(std::span(data, size)), random);
  for (size_t more = random() % 3; more > 0; --more) input = migrate::fuzz::mutate_records(input, random);
  if (input.empty() || input.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, input.data(), input.size());
  return input.size();
}

#else

namespace {

constexpr uint32_t kNumbers[] = {0,     1,      0x7f,   0x80,     0xff,       0x100,
                                 0xfff, 0x1000, 0xffff, 0x100000, 0x7fffffff, 0xffffffff};

/// One to four changes: bits, bytes, numbers that are at a bound, pieces lost, doubled or from another seed.
Input mutated(const std::vector<Input>& seeds, Random& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  Input input = seeds[below(seeds.size())];
  for (size_t changes = 1 + below(4); changes > 0 && input.size() > 8; --changes) {
    if (migrate::fuzz::kTarget.records && below(8) != 0) {
      input = migrate::fuzz::mutate_records(input, random);
      continue;
    }
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
    for (int i = 1; i < argc; ++i) migrate::fuzz::run(read_file(argv[i]));
    return 0;
  }
  Random random(argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1);
  const std::vector<Input> seeds = all_seeds();
  for (const Input& seed : seeds) migrate::fuzz::run(seed);
  for (unsigned long i = 0; i < runs; ++i) {
    const Input input = mutated(seeds, random);
    migrate::fuzz::run(input);
  }
  std::printf("%lu runs\n", runs);
  return 0;
}

#endif

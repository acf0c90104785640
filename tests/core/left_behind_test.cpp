// What a test leaves in this process, the programs that later tests fork get, too: memory that they share with it, or
// that lies where theirs will, would be moved along, and what the allocator keeps would be copied.
#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>
#include <set>
#include <string>

extern "C" const char __executable_start;

namespace migrate {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr uintptr_t kFirstOfOthers = 0;  // its shadow lies low
#else
const uintptr_t kFirstOfOthers = reinterpret_cast<uintptr_t>(&__executable_start);
#endif

/// Lines of /proc/self/maps: of shared memory, and of what lies where only MAP_FIXED puts it. All else is the C
/// library's.
std::set<std::string> mappings_of_tests() {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> found;
  for (std::string line; std::getline(maps, line);) {
    const bool shared = line.compare(line.find(' ') + 4, 1, "s") == 0;
    if (shared || std::stoull(line, nullptr, 16) < kFirstOfOthers) found.insert(line);
  }
  return found;
}

class NothingStaysMapped : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { before_ = mappings_of_tests(); }
  void OnTestEnd(const testing::TestInfo&) override {
    for (const std::string& mapping : mappings_of_tests())
      EXPECT_TRUE(before_.contains(mapping)) << "the test has left " << mapping;
    ::malloc_trim(0);
  }

  std::set<std::string> before_;
};

[[maybe_unused]] const bool kListening = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new NothingStaysMapped);  // which owns it
  return true;
}();

}  // namespace
}  // namespace migrate

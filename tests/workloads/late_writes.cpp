// NUMBER MiB (default 16), written when it is told to: every third page of the first half when the file `once` is
// there, every seventh of the second half when `last` is. What was written it says in `once.done` and `last.done`: the
// area's start and end, then the pages' addresses, a line each.
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096, kWords = kPage / sizeof(uint64_t), kApart = 1 << 20;
constexpr uint64_t kBefore = 1;

class Area {
 public:
  explicit Area(size_t pages) : pages_(pages), counts_(pages, kBefore) {
    // Apart from stacks, whose ends and what is behind them never come late.
    const size_t bytes = pages * kPage;
    void* around = mmap(nullptr, bytes + 2 * kApart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expect(around != MAP_FAILED, "mmap failed");
    words_ = reinterpret_cast<uint64_t*>(static_cast<char*>(around) + kApart);
    must(mprotect(words_, bytes, PROT_READ | PROT_WRITE), "mprotect");
    for (size_t i = 0; i < pages; ++i)
      for (size_t w = 0; w < kWords; ++w) words_[i * kWords + w] = word(i, w, kBefore);
  }

  /// Writes the pages that `chosen` chooses, and says which.
  std::string write_some(const std::function<bool(size_t)>& chosen) {
    const auto hex = [&](size_t i) {
      char text[24];
      std::snprintf(text, sizeof text, "%lx\n", reinterpret_cast<unsigned long>(words_ + i * kWords));
      return std::string(text);
    };
    std::string told = hex(0) + hex(pages_);
    for (size_t i = 0; i < pages_; ++i) {
      if (!chosen(i)) continue;
      write(i, counts_[i] + 1);
      told += hex(i);
    }
    return told;
  }
  size_t pages() const { return pages_; }
  void verify() const {
    for (size_t i = 0; i < pages_; ++i)
      for (size_t w = 0; w < kWords; ++w)
        expect(words_[i * kWords + w] == word(i, w, counts_[i]),
               "page " + std::to_string(i) + " is not as it was written");
  }

 private:
  static uint64_t word(size_t i, size_t w, uint64_t count) {
    return (i * kWords + w + 1) * 0x9E3779B97F4A7C15ULL + count;
  }
  void write(size_t i, uint64_t count) {
    for (size_t w = 0; w < kWords; ++w) words_[i * kWords + w] = word(i, w, count);
    counts_[i] = count;
  }

  size_t pages_;
  std::vector<uint64_t> counts_;  ///< that each page was written with
  uint64_t* words_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Area area(static_cast<size_t>(w.number(0, 16)) * 256);
        std::thread([&] {
          const auto step = [&](const std::string& name, const std::function<bool(size_t)>& chosen) {
            while (access(w.path(name).c_str(), F_OK) != 0) sleep_ms(2);
            const std::string told = area.write_some(chosen), temporary = w.path(name + ".new");
            const int fd = must(open(temporary.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666), "open");
            expect(write(fd, told.data(), told.size()) == static_cast<ssize_t>(told.size()),
                   "cannot say what was written");
            close(fd);
            must(rename(temporary.c_str(), w.path(name + ".done").c_str()), "rename");
          };
          step("once", [&](size_t i) { return i < area.pages() / 2 && i % 3 == 1; });
          step("last", [&](size_t i) { return i >= area.pages() / 2 && i % 7 == 3; });
          for (;;) sleep_ms(1000);
        }).detach();
        w.serve([&] { area.verify(); });
      },
      argv[0]);
}

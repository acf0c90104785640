// NUMBER MiB (default 16), written when it is told to: when the file `write` is there, every third page of the first
// half once; then every seventh of the second half again and again until the file `quiet` is there. Which pages these
// are it says in the file `written` ("once ADDRESS", "last ADDRESS", "area START END") when all were written once.
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096, kWords = kPage / sizeof(uint64_t), kApart = 1 << 20;
constexpr uint64_t kBefore = 1, kAfter = 2;

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

  bool once(size_t i) const { return i < pages_ / 2 && i % 3 == 1; }
  bool last(size_t i) const { return i >= pages_ / 2 && i % 7 == 3; }

  void write_once() {
    for (size_t i = 0; i < pages_; ++i)
      if (once(i)) write(i, kAfter);
  }
  /// Stops as soon as `quiet` says so.
  void write_last(const std::function<bool()>& quiet) {
    for (size_t i = 0; i < pages_ && !quiet(); ++i)
      if (last(i)) write(i, counts_[i] + 1);
  }
  std::string told() const {
    const auto hex = [&](size_t i) {
      char text[24];
      std::snprintf(text, sizeof text, " %lx", reinterpret_cast<unsigned long>(words_ + i * kWords));
      return std::string(text);
    };
    std::string all = "area" + hex(0) + hex(pages_) + "\n";
    for (size_t i = 0; i < pages_; ++i)
      if (once(i) || last(i)) all += (once(i) ? "once" : "last") + hex(i) + "\n";
    return all;
  }
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
        std::atomic<bool> idle{true};
        std::thread([&] {
          const auto is_there = [&](const char* name) { return access(w.path(name).c_str(), F_OK) == 0; };
          while (!is_there("write")) sleep_ms(2);
          idle = false;
          area.write_once();
          area.write_last([] { return false; });
          const std::string text = area.told();
          const int fd = must(open(w.path("written.new").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666), "open");
          expect(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()),
                 "cannot say what was written");
          close(fd);
          must(rename(w.path("written.new").c_str(), w.path("written").c_str()), "rename");
          const auto quiet = [&] { return is_there("quiet"); };
          while (!quiet()) area.write_last(quiet);
          idle = true;
          for (;;) sleep_ms(1000);
        }).detach();
        w.serve([&] {
          await([&] { return idle.load(); }, "the writer");
          area.verify();
        });
      },
      argv[0]);
}

// MIB of memory that is never left alone, and of which each byte is known: 16 threads read one half of it in ascending
// and descending order, 4 change the other half in every way and fork, and the children read everything.
//     restless DIR [SEED] [MIB] [US: between two pages of a reader] [S: who does not get on for so long, hangs]
#include <algorithm>
#include <array>
#include <numeric>
#include <thread>

#include "memory_walk.h"
#include "workload.h"

using namespace workload;
using memory_walk::Walk, memory_walk::Area, memory_walk::kPage, memory_walk::word_of, memory_walk::write_words;

namespace {

constexpr size_t kReaders = 16, kWalkers = 4, kSlots = 128;
constexpr int kWell = 0;

/// One thread, or one child.
struct Slot {
  std::atomic<pid_t> pid{0};
  std::atomic<uint64_t> progress{0};
};

/// What all of them share.
struct Board {
  std::array<Slot, kSlots> slots;
  std::atomic<uint64_t> audit{0};  ///< odd: everybody reads everything, and ends its children
  std::array<std::atomic<uint64_t>, kReaders + kWalkers> audited{};
  std::atomic<uint64_t> forks{0};
  std::array<std::atomic<uint64_t>, kWalkers> moves{}, refused{};
  std::atomic<bool> failed{false};
  std::array<char, 400> trouble{};

  void fail(const std::string& what) {
    if (!failed.exchange(true)) std::snprintf(trouble.data(), trouble.size(), "%s", what.c_str());
  }
  bool audits() const { return audit % 2 == 1; }
  /// kSlots: all are taken.
  size_t take() {
    for (size_t i = kReaders + kWalkers; i < kSlots; ++i) {
      pid_t none = 0;
      if (slots[i].pid.compare_exchange_strong(none, getpid())) return i;
    }
    return kSlots;
  }
};

struct Setting {
  Board* board;
  char* common;  ///< never written
  size_t pages;
  int64_t pace_us;
  std::string program;

  void rest(int64_t us) const {
    if (board->audits() || us == 0) return;
    timespec t{us / 1'000'000, us % 1'000'000 * 1000};
    nanosleep(&t, nullptr);
  }
  bool check_common(size_t page, const char* who) const {
    const auto* words = reinterpret_cast<const volatile uint64_t*>(common + page * kPage);
    for (uint64_t w = 0; w < kPage / 8; ++w) {
      const uint64_t got = words[w];
      if (got == word_of(page, w)) continue;
      board->fail(std::string(who) + ": " + (got == 0 ? "zeros" : "a wrong byte") + " in page " + std::to_string(page) +
                  " that nobody writes");
      return false;
    }
    return true;
  }
};

void* memory(size_t pages, bool huge) {
  void* at = mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  expect(at != MAP_FAILED, "mmap failed");
  if (huge) madvise(at, pages * kPage, MADV_HUGEPAGE);
  return at;
}

/// Even numbers upwards, odd ones downwards: in the order of a fill, and against it.
[[noreturn]] void be_reader(const Setting& s, size_t number) {
  Slot& slot = s.board->slots[number];
  for (;;) {
    const uint64_t audit = s.board->audit;
    for (size_t i = 0; i < s.pages; ++i) {
      s.check_common(number % 2 == 0 ? i : s.pages - 1 - i, "a reader");
      ++slot.progress;
      s.rest(s.pace_us);
    }
    if (audit % 2 == 0) continue;
    s.board->audited[number] = audit;
    while (s.board->audit == audit) {
      ++slot.progress;
      sleep_ms(1);
    }
  }
}

memory_walk::Surroundings surroundings(const Setting& s, size_t number) {
  memory_walk::Surroundings around;
  around.progress = &s.board->slots[number].progress;
  around.trouble = [&s](const std::string& what) { s.board->fail(what); };
  around.rest = [&s] { s.rest(s.pace_us / 2); };
  around.most_children = 2;
  around.executed = {s.program, "--exit"};
  around.in_child = [&s](memory_walk::Surroundings& its) {
    ++s.board->forks;
    const size_t slot = s.board->take();
    if (slot == kSlots) _exit(kWell);
    const int64_t pace = s.pace_us >> slot % 4;
    its.progress = &s.board->slots[slot].progress;
    its.rest = [&s, pace] { s.rest(pace); };
    its.child_ends = [&s, slot] { s.board->slots[slot].pid = 0; };
    its.check_more = [&s, slot, pace] {
      std::vector<size_t> order(s.pages);
      for (size_t i = 0; i < s.pages; ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), std::mt19937_64(slot));
      for (const size_t page : order) {
        if (!s.check_common(page, "a child")) return false;
        ++s.board->slots[slot].progress;
        s.rest(pace);
      }
      return true;
    };
  };
  return around;
}

[[noreturn]] void be_walker(const Setting& s, size_t number, uint64_t seed, size_t pages) {
  Area area{static_cast<char*>(memory(pages, number % 2 == 0)), {}};
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < pages; ++i) {
    area.pages.push_back(i % 5 == 4 ? memory_walk::Page{} : memory_walk::Page::holding(random() | 1));
    if (!area.pages[i].zeros) write_words(area.at + i * kPage, area.pages[i].value);
  }
  Walk walk({area}, seed, surroundings(s, number));
  for (;;) {
    const uint64_t audit = s.board->audit;
    if (audit % 2 == 0) {
      walk.step();
      walk.have(pages);
      walk.reap(WNOHANG);
      s.board->moves[number - kReaders] = walk.moves();
      s.board->refused[number - kReaders] = walk.refused();
      continue;
    }
    walk.check_all();
    while (walk.children() > 0 && walk.good()) {
      walk.reap(WNOHANG);
      ++s.board->slots[number].progress;
      sleep_ms(1);
    }
    s.board->audited[number] = audit;
    while (s.board->audit == audit) {
      ++s.board->slots[number].progress;
      sleep_ms(1);
    }
  }
}

/// Who did not get on for too long.
class Watch {
 public:
  Watch(Board& board, int64_t seconds) : board_(board), ns_(seconds * 1'000'000'000) {}
  void look() {
    const int64_t now = now_ns();
    for (size_t i = 0; i < kSlots; ++i) {
      const pid_t pid = board_.slots[i].pid;
      const uint64_t progress = board_.slots[i].progress;
      Seen& seen = seen_[i];
      if (pid != seen.pid || progress != seen.progress) {
        seen = {pid, progress, now};
      } else if (pid != 0 && now - seen.since > ns_) {
        board_.fail("number " + std::to_string(i) + " (process " + std::to_string(pid) + ") hangs after " +
                    std::to_string(progress) + " steps");
      }
    }
  }

 private:
  struct Seen {
    pid_t pid;
    uint64_t progress;
    int64_t since;
  };
  Board& board_;
  int64_t ns_;
  std::array<Seen, kSlots> seen_{};
};

void begin(Setting& s, Workload& w) {
  const auto seed = static_cast<uint64_t>(w.number(0, 1));
  const auto all = static_cast<size_t>(w.number(1, 16)) * 256;
  s.pages = all / 2;
  s.pace_us = w.number(2, 2000);
  s.common = static_cast<char*>(memory(s.pages, false));
  madvise(s.common + s.pages / 2 * kPage, s.pages / 2 * kPage, MADV_HUGEPAGE);
  for (size_t i = 0; i < s.pages; ++i) write_words(s.common + i * kPage, i);
  for (size_t i = 0; i < kReaders + kWalkers; ++i) {
    s.board->slots[i].pid = getpid();
    if (i < kReaders)
      std::thread([&s, i] { be_reader(s, i); }).detach();
    else
      std::thread([&s, i, seed, all] { be_walker(s, i, seed * 100 + i, all / 2 / kWalkers); }).detach();
  }
}

void verify(Setting& s) {
  Board& b = *s.board;
  const uint64_t audit = ++b.audit;
  try {
    await([&] { return b.failed || std::ranges::all_of(b.audited, [&](const auto& a) { return a == audit; }); },
          "everybody to read everything", 40'000);
  } catch (const std::exception& e) {
    std::string who = e.what();
    for (size_t i = 0; i < b.audited.size(); ++i)
      if (b.audited[i] != audit) who += " " + std::to_string(i);
    b.fail(who);
  }
  expect(!b.failed, b.trouble.data());
  for (size_t i = kReaders + kWalkers; i < kSlots; ++i) expect(b.slots[i].pid == 0, "a child has not ended");
  ++b.audit;
}

/// For who looks on.
void tell(const Board& board, const std::string& path) {
  const std::string fresh = path + ".new";
  std::FILE* f = std::fopen(fresh.c_str(), "w");
  if (f == nullptr) return;
  const auto sum = [](const auto& all) { return std::accumulate(all.begin(), all.end(), uint64_t{0}); };
  std::fprintf(f, "forks %lu\nmoves %lu\nrefused %lu\ntrouble %s\n", board.forks.load(), sum(board.moves),
               sum(board.refused), board.trouble.data());
  std::fclose(f);
  std::rename(fresh.c_str(), path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--exit") == 0) return kWell;
  return run(
      [&] {
        Workload w(argc, argv);
        static Setting s{};
        s.program = "/proc/self/exe";
        s.board = new (shared_memory<Board>()) Board;
        begin(s, w);
        Watch watch(*s.board, w.number(3, 120));
        const std::string counts = w.path("counts");
        w.serve([&] { verify(s); },
                [&] {
                  sleep_ms(5);
                  watch.look();
                  tell(*s.board, counts);
                });
      },
      argv[0]);
}

// The program that the measurements move: it rewrites pages of its memory at a given rate, notes how much it got done
// and for how long it did nothing, and can tell whether its memory is still what it wrote. It follows the contract of
// tests/workloads/README.md and answers a check at any time.
//   writer DIR MiB RATE ORDER EXTENT
//     RATE    pages a second; 0: none; -1: as many as it can
//     ORDER   0: random pages, 1: one after the other
//     EXTENT  0: two words of a page, 1: the whole page
// DIR/samples gets a record every 10 ms: four 64-bit numbers: now, pages written so far, the longest time since the
// last record in which it did nothing, and when that time ended. Clocks are CLOCK_REALTIME in nanoseconds: a move gives
// the program another CLOCK_MONOTONIC, which goes on from where it stood and so hides the downtime.
#include <algorithm>
#include <span>
#include <vector>

#include "tests/workloads/workload.h"

using namespace workload;

namespace {

constexpr size_t kWords = 512;
constexpr int64_t kTick = 1'000'000;           ///< ns between two beats of a writer that has a rate
constexpr int64_t kSamplePeriod = 10'000'000;  ///< ns
constexpr int64_t kTurn = 5'000'000;           ///< ns between two looks for a check
constexpr int64_t kArrears = 20'000'000;       ///< ns; what was not written in time is not made up for beyond that
constexpr size_t kBatch = 8;  ///< pages between two beats: as many missing ones, one after the other, are no standstill
constexpr size_t kShown = 8;  ///< differing pages that a failed check names

struct Page {
  uint64_t words[kWords];
};

uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// Contents that no compressor makes smaller, at the speed of memory.
void fill(Page& page, uint64_t seed) {
  const uint64_t base = mixed(seed);
  for (size_t i = 0; i < kWords; ++i) page.words[i] = base + i * 0xD1B54A32D192ED03ULL;
}

struct Sample {
  int64_t now, written, gap, gap_end;
};

/// The n-th write, from 1 on, goes to a page that follows from n alone: so no table is needed, which would have to be
/// written, and sent, as well.
class Writer {
 public:
  Writer(size_t pages, long rate, bool sequential, bool whole, const std::string& samples)
      : rate_(rate), sequential_(sequential), whole_(whole) {
    void* area = mmap(nullptr, pages * sizeof(Page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expect(area != MAP_FAILED, "mmap failed");
    memory_ = {static_cast<Page*>(area), pages};
    for (size_t i = 0; i < pages; ++i) {
      fill(memory_[i], initial(i));
      memory_[i].words[0] = 0;
    }
    samples_ = must(open(samples.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666), "open samples");
    paced_since_ = last_beat_ = last_sample_ = now_ns(CLOCK_REALTIME);
  }

  void run_for_a_turn() {
    const int64_t began = now_ns(CLOCK_REALTIME);
    while (beat() - began < kTurn) {
      if (rate_ < 0) {
        for (size_t i = 0; i < kBatch; ++i) write_next();
      } else {
        write_what_is_due();
        timespec t{0, kTick};
        nanosleep(&t, nullptr);
      }
    }
  }

  /// Throws what differs. Nothing is written meanwhile.
  void verify() const {
    std::vector<uint64_t> last(memory_.size());
    for (uint64_t n = 1; n <= written_; ++n) last[page_of(n)] = n;
    size_t wrong = 0;
    std::string first;
    for (size_t i = 0; i < memory_.size(); ++i) {
      const std::string what = difference(i, last[i]);
      if (what.empty()) continue;
      if (++wrong <= kShown) first += (first.empty() ? "" : "; ") + what;
    }
    expect(wrong == 0, std::to_string(wrong) + " of " + std::to_string(memory_.size()) + " pages differ, after write " +
                           std::to_string(written_) + ": " + first);
  }

  /// After a verification, which took its time.
  void forget_gap() { paced_since_ = last_beat_ = now_ns(CLOCK_REALTIME), paced_from_ = written_; }

 private:
  static uint64_t initial(size_t index) { return ~uint64_t{index}; }
  size_t page_of(uint64_t n) const { return (sequential_ ? n : mixed(n)) % memory_.size(); }

  void write_next() {
    Page& page = memory_[page_of(++written_)];
    if (whole_) {
      fill(page, written_);
    } else {
      page.words[kWords - 1] = ~written_;
    }
    page.words[0] = written_;
  }

  void write_what_is_due() {
    const auto due = [&] {
      return paced_from_ + static_cast<uint64_t>((last_beat_ - paced_since_) * rate_ / 1'000'000'000);
    };
    if (static_cast<int64_t>(due() - written_) * 1'000'000'000 > kArrears * rate_) {
      paced_since_ = last_beat_ - kTick, paced_from_ = written_;
    }
    for (const uint64_t until = due(); written_ < until;) {
      write_next();
      if (written_ % kBatch == 0) beat();
    }
  }

  int64_t beat() {
    const int64_t now = now_ns(CLOCK_REALTIME);
    if (now - last_beat_ > gap_) gap_ = now - last_beat_, gap_end_ = now;
    last_beat_ = now;
    if (now - last_sample_ >= kSamplePeriod) {
      const Sample sample{now, static_cast<int64_t>(written_), gap_, gap_end_};
      if (write(samples_, &sample, sizeof sample) != sizeof sample) std::_Exit(3);
      last_sample_ = now;
      gap_ = 0;
    }
    return now;
  }

  std::string difference(size_t index, uint64_t last) const {
    const Page& page = memory_[index];
    Page wanted;
    fill(wanted, whole_ && last != 0 ? last : initial(index));
    wanted.words[0] = last;
    if (!whole_ && last != 0) wanted.words[kWords - 1] = ~last;
    if (std::equal(std::begin(page.words), std::end(page.words), std::begin(wanted.words))) return {};
    const bool zero =
        std::all_of(std::begin(page.words), std::end(page.words), [](uint64_t word) { return word == 0; });
    return "page " + std::to_string(index) + " should be of write " + std::to_string(last) +
           (zero ? " and is all zeros" : " and is of write " + std::to_string(page.words[0]));
  }

  std::span<Page> memory_;
  const long rate_;
  const bool sequential_, whole_;
  int samples_ = -1;
  uint64_t written_ = 0, paced_from_ = 0;
  int64_t paced_since_ = 0, last_beat_ = 0, last_sample_ = 0, gap_ = 0, gap_end_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const long mib = w.number(0, 64), rate = w.number(1, 1000);
        expect(mib > 0 && mib < (1 << 20) && rate >= -1 && rate <= 100'000'000, "MiB or RATE is out of bounds");
        Writer writer(static_cast<size_t>(mib) << 8, rate, w.number(2, 0) != 0, w.number(3, 0) != 0, w.path("samples"));
        w.serve(
            [&] {
              writer.verify();
              writer.forget_gap();
            },
            [&] { writer.run_for_a_turn(); });
      },
      argv[0]);
}

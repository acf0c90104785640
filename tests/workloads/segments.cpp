// Segments of its own: entries of the LDT (modify_ldt(2)), which all threads of a task have, and of the GDT
// (set_thread_area(2)), which each thread has for itself.
#include <asm/ldt.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

user_desc segment(unsigned entry, unsigned base, unsigned limit, unsigned contents, bool read_only) {
  user_desc d{};
  d.entry_number = entry;
  d.base_addr = base;
  d.limit = limit;
  d.seg_32bit = 1;
  d.contents = contents;
  d.read_exec_only = read_only;
  d.limit_in_pages = 1;
  d.useable = 1;
  return d;
}

std::vector<uint64_t> table() {
  std::vector<uint64_t> all(8192);
  const long bytes = must(syscall(SYS_modify_ldt, 0, all.data(), all.size() * sizeof(uint64_t)), "modify_ldt");
  all.resize(static_cast<size_t>(bytes) / sizeof(uint64_t));
  return all;
}

void expect_area(const user_desc& want) {
  user_desc is{};
  is.entry_number = want.entry_number;
  must(syscall(SYS_get_thread_area, &is), "get_thread_area");
  expect_equal(unsigned{is.base_addr}, unsigned{want.base_addr}, "the base of a thread's segment");
  expect_equal(unsigned{is.limit}, unsigned{want.limit}, "the limit of a thread's segment");
}

/// Where the kernel can: not without 32-bit emulation.
std::optional<user_desc> set_area(unsigned base) {
  user_desc d = segment(static_cast<unsigned>(-1), base, 0xfff, 0, false);
  if (syscall(SYS_set_thread_area, &d) == -1) return std::nullopt;
  return d;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        for (const user_desc& d : {segment(0, 0x1234000, 0xfffff, 0, false), segment(3, 0, 0xabcde, 1, true),
                                   segment(17, 0xfedcba98, 7, 2, false)})
          must(syscall(SYS_modify_ldt, 0x11, &d, sizeof d), "modify_ldt");
        const std::vector<uint64_t> was = table();
        const auto own = set_area(0x1000);
        std::atomic<uint64_t> asked{0}, answered{0};
        std::atomic<bool> ready{false}, wrong{false};
        std::thread([&] {
          const auto other = set_area(0x2000);
          ready = true;
          for (;; sleep_ms(3)) {
            if (asked == answered) continue;
            try {
              if (other) expect_area(*other);
            } catch (const std::exception&) {
              wrong = true;
            }
            answered = asked.load();
          }
        }).detach();
        await([&] { return ready.load(); }, "the thread");
        w.serve([&] {
          const std::vector<uint64_t> is = table();
          // Longer with zeros is the same.
          for (size_t i = 0; i < std::max(is.size(), was.size()); ++i)
            expect_equal(i < is.size() ? is[i] : 0, i < was.size() ? was[i] : 0, "LDT entry " + std::to_string(i));
          if (own) expect_area(*own);
          ++asked;
          await([&] { return answered == asked; }, "the thread");
          expect(!wrong, "the other thread's segment differs");
        });
      },
      argv[0]);
}

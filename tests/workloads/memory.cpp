// NUMBER MiB (default 64) of memory that cannot be compressed away; a thread writes random pages of it all the time,
// each with contents that follow from its serial number.
#include <algorithm>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

struct Page {
  uint64_t serial, salt, words[510];
};
static_assert(sizeof(Page) == 4096);

std::atomic<uint64_t> g_written{0};
std::atomic<bool> g_pause{false}, g_paused{false};

uint64_t next(uint64_t& x) {
  x ^= x << 13;
  x ^= x >> 7;
  return x ^= x << 17;
}

void write_page(Page& page, uint64_t serial) {
  uint64_t x = serial * 0x9E3779B97F4A7C15ULL + 1;
  page.serial = serial;
  page.salt = x;
  for (uint64_t& word : page.words) word = next(x);
}

void verify_page(const Page& page, uint64_t last, size_t index) {
  uint64_t x = page.serial * 0x9E3779B97F4A7C15ULL + 1;
  const std::string name = "page " + std::to_string(index);
  expect(page.salt == x && page.serial != 0 && page.serial <= last, name + ": header");
  for (uint64_t word : page.words) expect(word == next(x), name + ": contents");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const size_t pages = static_cast<size_t>(w.number(0, 64)) * 256;
        const long rate = w.number(1, 1000);  // pages written a second
        void* area = mmap(nullptr, pages * sizeof(Page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        expect(area != MAP_FAILED, "mmap failed");
        Page* all = static_cast<Page*>(area);
        std::vector<uint64_t> serials(pages);
        uint64_t serial = 0;
        for (size_t i = 0; i < pages; ++i) write_page(all[i], serials[i] = ++serial);
        std::thread([&] {
          uint64_t x = 88172645463325252ULL;
          for (;;) {
            g_paused = g_pause.load();
            if (!g_pause)
              for (long n = 0; n < std::max(rate / 500, 1L); ++n) {
                const size_t i = next(x) % pages;
                write_page(all[i], serials[i] = ++serial);
                ++g_written;
              }
            sleep_ms(2);
          }
        }).detach();
        await([] { return g_written > 0; }, "the writer");
        w.serve([&] {
          const uint64_t before = g_written;
          await([&] { return g_written > before; }, "the writer to go on");
          g_pause = true;
          await([] { return g_paused.load(); }, "the writer to pause");
          try {
            for (size_t i = 0; i < pages; ++i) {
              expect(all[i].serial == serials[i], "page " + std::to_string(i) + " is of another time");
              verify_page(all[i], serial, i);
            }
          } catch (...) {
            g_pause = false;
            throw;
          }
          g_pause = false;
        });
      },
      argv[0]);
}

// What a fault on a missing page costs: touch → message → callback → page → the task runs on; alone, and while a fill
// runs. Prints one JSON object. Pages come from memory here: no network, no source.
//   lazy_faults [MiB]
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <thread>

#include "bench/lazy_bench.h"
#include "lazypages/fill_order.h"
#include "lazypages/idle.h"
#include "lazypages/lazy_memories.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;
constexpr MemoryId kMemory{MemoryId::Kind::task, 1};

/// Faults are answered by the loop's thread itself (`direct`) or by another, which is what a network costs at least.
void measure(const char* name, uint64_t pages, bool direct, bool fill) {
  LazyShared* shared = LazyShared::make();
  LazyProgram program(*shared, pages, std::min<uint64_t>(pages, std::size(shared->us)) / 2, {});
  const std::vector<std::byte> data(FillOrder::kMostBytes, std::byte{1});
  std::vector<LazyMemory> all;
  all.push_back(program.registered(kMemory));

  std::mutex mutex;
  std::condition_variable wakeup;
  std::deque<uint64_t> wanted;
  LazyMemories* tree = nullptr;
  LazyMemories memories(std::move(all), [&](MemoryId, uint64_t source) {
    if (direct) return tree->write(kMemory, source, std::span(data).first(kPageSize));
    const std::lock_guard lock(mutex);
    wanted.push_back(source);
    wakeup.notify_one();
  });
  tree = &memories;
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    while (!stop) memories.serve(std::chrono::milliseconds(10));
  });
  if (!direct)
    threads.emplace_back([&] {
      for (std::unique_lock lock(mutex); !stop;) {
        if (!wakeup.wait_for(lock, std::chrono::milliseconds(10), [&] { return !wanted.empty(); })) continue;
        const uint64_t source = wanted.front();
        wanted.pop_front();
        lock.unlock();
        memories.write(kMemory, source, std::span(data).first(kPageSize));
        lock.lock();
      }
    });
  const auto start = Clock::now();
  double filled = 0;
  if (fill)
    threads.emplace_back([&] {
      become_idle();
      FillOrder order({{kMemory, {shared->base, pages}, 0}});
      while (const auto piece = order.next()) {
        const OutOfIdle awake;
        memories.write(kMemory, piece->address, std::span(data).first(piece->bytes));
      }
      filled = std::chrono::duration<double>(Clock::now() - start).count();
    });
  shared->go = true;
  program.wait_for_end();
  const double ran = std::chrono::duration<double>(Clock::now() - start).count();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  if (shared->count > 0)
    std::printf(
        "\"%s\": {\"faults\": %lu, \"median_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.0f, \"ran_s\": %.3f, "
        "\"filled_s\": %.3f}",
        name, static_cast<unsigned long>(shared->count), shared->quantile(0.5), shared->quantile(0.99),
        shared->quantile(1), ran, filled);
  ::munmap(shared, sizeof *shared);
}

}  // namespace
}  // namespace migrate

int main(int argc, char** argv) {
  const uint64_t pages = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 256) * 256;
  std::printf("{");
  migrate::measure("alone", pages, true, false);
  std::printf(",\n ");
  migrate::measure("other thread", pages, false, false);
  std::printf(",\n ");
  migrate::measure("beside a fill", pages, false, true);
  std::printf("}\n");
}

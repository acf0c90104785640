// What a fault on a missing page costs: touch → message → callback → page → the task runs on; alone, and while a fill
// runs. Prints one JSON object. Pages come from memory here: no network, no source.
//   lazy_faults [MiB]
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <random>
#include <thread>

#include "core/base/procfs.h"
#include "lazypages/fill_order.h"
#include "lazypages/idle.h"
#include "lazypages/lazy_memories.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;
constexpr MemoryId kMemory{MemoryId::Kind::task, 1};

struct Shared {
  std::atomic<int> userfaultfd{-1};
  std::atomic<uint64_t> base{0};
  std::atomic<bool> go{false};
  std::atomic<uint64_t> count{0};
  float us[1 << 18];
};

[[noreturn]] void touch(Shared& shared, uint64_t pages, uint64_t touched) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  void* at = ::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  shared.base = reinterpret_cast<uint64_t>(at);
  const auto uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  shared.userfaultfd = uffd;
  while (!shared.go) ::usleep(50);
  ::close(uffd);
  std::mt19937_64 random(1);
  for (uint64_t i = 0; i < touched; ++i) {
    const auto* page = static_cast<const volatile uint64_t*>(at) + random() % pages * 512;
    const auto start = Clock::now();
    static_cast<void>(*page);
    const std::chrono::duration<float, std::micro> took = Clock::now() - start;
    if (took.count() > 3) shared.us[shared.count++] = took.count();  // it was missing
  }
  ::_exit(0);
}

LazyMemory registered(pid_t pid, const Shared& shared, uint64_t pages) {
  const Fd process = std::move(*open_pidfd(pid));
  while (shared.userfaultfd < 0) ::usleep(50);
  LazyMemory memory{kMemory, get_remote_fd(process.get(), shared.userfaultfd), process.dup(), {}, {}};
  uffdio_api api{
      UFFD_API,
      UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP, 0};
  check(::ioctl(memory.userfaultfd.get(), UFFDIO_API, &api), "set up", "a userfaultfd");
  uffdio_register reg{{shared.base, pages * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
  check(::ioctl(memory.userfaultfd.get(), UFFDIO_REGISTER, &reg), "register", "memory");
  memory.ranges = {{RemoteAddr(shared.base), RemoteAddr(shared.base + pages * kPageSize)}};
  memory.missing = {{shared.base, pages}};
  return memory;
}

/// Faults are answered by the loop's thread itself (`direct`) or by another, which is what a network costs at least.
void measure(const char* name, uint64_t pages, bool direct, bool fill) {
  auto* shared =
      new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
  const pid_t pid = ::fork();
  if (pid == 0) touch(*shared, pages, std::min<uint64_t>(pages, std::size(shared->us)) / 2);
  const std::vector<std::byte> data(FillOrder::kMostBytes, std::byte{1});
  std::vector<LazyMemory> all;
  all.push_back(registered(pid, *shared, pages));

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
  ::waitpid(pid, nullptr, 0);
  const double ran = std::chrono::duration<double>(Clock::now() - start).count();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  std::sort(shared->us, shared->us + shared->count);
  const auto at = [&](double q) { return shared->us[static_cast<size_t>(static_cast<double>(shared->count - 1) * q)]; };
  if (shared->count > 0)
    std::printf(
        "\"%s\": {\"faults\": %lu, \"median_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.0f, \"ran_s\": %.3f, "
        "\"filled_s\": %.3f}",
        name, static_cast<unsigned long>(shared->count), at(0.5), at(0.99), at(1), ran, filled);
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

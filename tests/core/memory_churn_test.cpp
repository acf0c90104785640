// The churning program itself (see memory_churn.h): it is this test program, started with a variable set.
#include "tests/core/memory_churn.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/base/error.h"
#include "core/base/types.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace migrate {
namespace {

constexpr const char* kSeed = "MIGRATE_CHURN_SEED";
constexpr const char* kControl = "MIGRATE_CHURN_CONTROL";
constexpr uint64_t kArena = 0x1000'0000'0000;
constexpr uint64_t kArenaPages = 2048;
constexpr int kMostChildren = 2;
constexpr int kGuardInstall = 102, kGuardRemove = 103;  // MADV_GUARD_*, 6.13

thread_local sigjmp_buf escape;
thread_local volatile bool escapable = false;

void on_fault(int) {
  if (!escapable) ::_exit(99);
  siglongjmp(escape, 1);
}

/// Runs `body`, which may touch what is not there.
template <class Body>
void try_to(Body body) {
  if (sigsetjmp(escape, 1) == 0) {
    escapable = true;
    body();
  }
  escapable = false;
}

class Churn {
 public:
  Churn(uint64_t seed, ChurnControl* control, int control_fd)
      : state_(seed * 0x9e37'79b9'7f4a'7c15 + 1), control_(control), control_fd_(control_fd) {}

  [[noreturn]] void run(uint64_t steps) {
    for (uint64_t n = 0; n < steps; ++n) {
      step();
      ++control_->steps;
      if (n % 8 == 0) ::usleep(50);
    }
    ::_exit(0);
  }
  void write_on() {
    for (;;) {
      try_to([&] { *reinterpret_cast<volatile uint64_t*>(address()) = random(); });
      ::usleep(20);
    }
  }

 private:
  uint64_t random() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  uint64_t below(uint64_t n) { return (random() >> 11) % n; }
  char* address() { return reinterpret_cast<char*>(kArena + below(kArenaPages) * kPageSize); }

  struct Piece {
    char* start;
    size_t bytes;
  };
  Piece piece() {
    const uint64_t most = below(8) == 0 ? 600 : 24;
    const uint64_t pages = 1 + below(most);
    const uint64_t first = below(kArenaPages - pages);
    return {reinterpret_cast<char*>(kArena + first * kPageSize), pages * kPageSize};
  }
  int protection() {
    static constexpr int kChoice[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE};
    return kChoice[below(4)];
  }

  void map_anonymous() {
    const Piece p = piece();
    const int extra = below(4) == 0 ? MAP_NORESERVE : 0;
    const int prot = below(3) == 0 ? protection() : PROT_READ | PROT_WRITE;
    ::mmap(p.start, p.bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | extra, -1, 0);
  }
  void map_file() {
    const Piece p = piece();
    const int fd = ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    ::mmap(p.start, p.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    ::close(fd);
  }
  void map_shared() {
    const Piece p = piece();
    ::mmap(p.start, p.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  }
  void remap() {
    const Piece from = piece(), to = piece();
    switch (below(4)) {
      case 0:
        ::mremap(from.start, from.bytes, from.bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to.start);
        break;
      case 1:
        ::mremap(from.start, from.bytes, from.bytes + kPageSize * below(8), 0);
        break;
      case 2:
        ::mremap(from.start, from.bytes, kPageSize * (1 + below(from.bytes / kPageSize)), 0);
        break;
      default:
        ::mremap(from.start, from.bytes, to.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to.start);
    }
  }
  void advise() {
    static constexpr int kAdvice[] = {
        MADV_DONTNEED,   MADV_DONTNEED, MADV_DONTNEED, MADV_FREE,          MADV_HUGEPAGE,       MADV_NOHUGEPAGE,
        MADV_COLLAPSE,   MADV_REMOVE,   MADV_COLD,     MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_WIPEONFORK,
        MADV_KEEPONFORK, MADV_DONTFORK, MADV_DOFORK,   MADV_PAGEOUT,       kGuardInstall,       kGuardRemove};
    const Piece p = piece();
    ::madvise(p.start, p.bytes, kAdvice[below(std::size(kAdvice))]);
  }
  void huge() {
    char* at = reinterpret_cast<char*>(kArena + below(kArenaPages / 512) * kHugePageSize);
    ::mmap(at, kHugePageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    ::madvise(at, kHugePageSize, MADV_HUGEPAGE);
    try_to([&] { *reinterpret_cast<volatile uint64_t*>(at) = random(); });
  }
  void grow_heap() {
    if (below(2) == 0) {
      const auto bytes = static_cast<intptr_t>(below(16) * 1000);
      auto* at = static_cast<char*>(::sbrk(bytes));
      if (at == reinterpret_cast<char*>(-1)) return;
      heap_ += bytes;
      if (bytes > 0) std::memset(at, static_cast<int>(random()), static_cast<size_t>(bytes));
    } else if (heap_ > 0) {
      const auto bytes = static_cast<intptr_t>(below(static_cast<uint64_t>(heap_) + 1));
      if (::sbrk(-bytes) != reinterpret_cast<void*>(-1)) heap_ -= bytes;
    }
  }
  void store() {
    const Piece p = piece();
    const auto value = static_cast<int>(below(3) == 0 ? 0 : random());
    try_to([&] { std::memset(p.start, value, p.bytes); });
  }
  void store_scattered() {
    for (int i = 0; i < 20; ++i) try_to([&] { *reinterpret_cast<volatile uint64_t*>(address()) = random(); });
  }
  void look() {
    const Piece p = piece();
    try_to([&] {
      for (size_t at = 0; at < p.bytes; at += kPageSize) static_cast<void>(*static_cast<volatile char*>(p.start + at));
    });
  }
  void let_kernel_store() {
    const Piece p = piece();
    if (below(2) == 0) {
      const int fd = ::open("/dev/urandom", O_RDONLY | O_CLOEXEC);
      static_cast<void>(!::read(fd, p.start + below(kPageSize), p.bytes / 2));
      ::close(fd);
    } else {
      char local[3000];
      std::memset(local, static_cast<int>(random()), sizeof local);
      const iovec from{local, sizeof local}, to{p.start + below(kPageSize), sizeof local};
      static_cast<void>(!::process_vm_writev(::getpid(), &from, 1, &to, 1, 0));
    }
  }
  void store_through_proc() {
    const int fd = ::open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    const uint64_t value = random();
    static_cast<void>(!::pwrite(fd, &value, sizeof value, static_cast<off_t>(reinterpret_cast<uint64_t>(address()))));
    ::close(fd);
  }
  void lock() {
    const Piece p = piece();
    below(2) == 0 ? ::mlock(p.start, p.bytes) : ::munlock(p.start, p.bytes);
  }
  void use_stack(int depth) {
    volatile char room[3000];
    for (size_t i = 0; i < sizeof room; i += 512) room[i] = static_cast<char>(random());
    if (depth > 0) use_stack(depth - 1);
    room[0] = 0;
  }
  void fork_child() {
    if (control_->quiet != 0) return;
    while (children_ > 0 && ::waitpid(-1, nullptr, WNOHANG) > 0) --children_;
    if (children_ >= kMostChildren) return;
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      children_ = kMostChildren;  // none of its own
      state_ ^= 0x5555;
      run(100 + below(400));
    }
    if (child > 0) ++children_;
  }
  void exec() {
    if (control_->quiet != 0 || children_ >= kMostChildren) return;
    char seed[24], fd[24];
    std::snprintf(seed, sizeof seed, "%lu", static_cast<unsigned long>(random()));
    std::snprintf(fd, sizeof fd, "%d", control_fd_);
    ::setenv(kSeed, seed, 1);
    ::setenv(kControl, fd, 1);
    ::execl("/proc/self/exe", "churn", nullptr);
  }

  /// Half of the steps leave it open without a mapping.
  void map_memfd() {
    const Piece p = piece();
    if (memfd_ < 0 || below(8) == 0) {
      if (memfd_ >= 0) ::close(memfd_);
      memfd_ = ::memfd_create("churn", MFD_CLOEXEC);
      static_cast<void>(!::ftruncate(memfd_, static_cast<off_t>(below(kMemfdPages) * kPageSize)));
    }
    const int type = below(4) == 0 ? MAP_PRIVATE : MAP_SHARED;
    if (below(2) == 0) ::mmap(p.start, p.bytes, PROT_READ | PROT_WRITE, type | MAP_FIXED, memfd_, 0);
  }
  void change_memfd() {
    if (memfd_ < 0) return map_memfd();
    char local[3000];
    std::memset(local, static_cast<int>(random()), sizeof local);
    const auto at = static_cast<off_t>(below(kMemfdPages) * kPageSize);
    switch (below(5)) {
      case 0:
        static_cast<void>(!::ftruncate(memfd_, at + static_cast<off_t>(below(3) * 1000)));
        break;
      case 1:
        ::fallocate(memfd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, static_cast<off_t>(8 * kPageSize));
        break;
      default:
        static_cast<void>(!::pwrite(memfd_, local, sizeof local, at + static_cast<off_t>(below(2000))));
    }
  }

  void step() {
    switch (below(44)) {
      case 40:
        return map_memfd();
      case 41:
      case 42:
      case 43:
        return change_memfd();
      case 0:
      case 1:
      case 2:
        return map_anonymous();
      case 3:
        return map_file();
      case 4:
        return map_shared();
      case 5:
      case 6:
      case 7:
        return remap();
      case 8:
      case 9:
      case 10:
      case 11:
        return advise();
      case 12:
        return huge();
      case 13:
      case 14:
        return grow_heap();
      case 15:
      case 16:
      case 17:
        return let_kernel_store();
      case 18:
        return store_through_proc();
      case 19:
        return lock();
      case 20:
        return use_stack(static_cast<int>(below(60)));
      case 21:
        return look();
      case 22:
        if (below(4) == 0) fork_child();
        return;
      case 23:
        if (below(10) == 0) exec();
        return;
      case 24: {
        const Piece p = piece();
        ::munmap(p.start, p.bytes);
        return;
      }
      case 25: {
        const Piece p = piece();
        ::mprotect(p.start, p.bytes, protection());
        return;
      }
      case 26:
      case 27:
      case 28:
      case 29:
      case 30:
        return store();
      default:
        return store_scattered();
    }
  }

  uint64_t state_;
  ChurnControl* control_;
  int control_fd_;
  static constexpr uint64_t kMemfdPages = 300;
  int memfd_ = -1;
  intptr_t heap_ = 0;
  int children_ = 0;
};

void* write_on(void* churn) {
  static_cast<Churn*>(churn)->write_on();
  return nullptr;
}

ChurnControl* map_control(int fd) {
  void* at = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return at == MAP_FAILED ? nullptr : static_cast<ChurnControl*>(at);
}

// Before main(): in the churning program no test runs.
__attribute__((constructor)) void churn_if_asked() {
  const char* seed = std::getenv(kSeed);
  const char* fd = std::getenv(kControl);
  if (seed == nullptr || fd == nullptr) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ChurnControl* control = map_control(std::atoi(fd));
  if (control == nullptr) ::_exit(98);
  struct sigaction action {};
  action.sa_handler = on_fault;
  action.sa_flags = SA_NODEFER;
  ::sigaction(SIGSEGV, &action, nullptr);
  ::sigaction(SIGBUS, &action, nullptr);
  ::mmap(reinterpret_cast<void*>(kArena), kArenaPages * kPageSize / 2, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  const uint64_t number = std::strtoull(seed, nullptr, 10);
  Churn main_thread(number, control, std::atoi(fd));
  static Churn helper(number + 77, control, std::atoi(fd));
  pthread_t thread;
  if (number % 2 == 0) ::pthread_create(&thread, nullptr, write_on, &helper);
  main_thread.run(UINT64_MAX);
}

}  // namespace

ChurnControl* new_churn_control(int& fd) {
  fd = check(::memfd_create("churn", 0), "create", "a memfd");
  check(::ftruncate(fd, static_cast<off_t>(kPageSize)), "size", "a memfd");
  return new (map_control(fd)) ChurnControl;
}

pid_t start_churn(uint64_t seed, int control_fd) {
  char seed_text[32], fd_text[32];
  std::snprintf(seed_text, sizeof seed_text, "%s=%lu", kSeed, static_cast<unsigned long>(seed));
  std::snprintf(fd_text, sizeof fd_text, "%s=%d", kControl, control_fd);
  char name[] = "churn";
  char* const arguments[] = {name, nullptr};
  char* const environment[] = {seed_text, fd_text, nullptr};
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::execve("/proc/self/exe", arguments, environment);
    ::_exit(97);
  }
  return pid;
}

}  // namespace migrate

// The restorer blob: turns a task shell into the task by running lists of system calls (protocol.h). It runs without a
// C library, a thread-local segment or a stack of the task's, and touches general registers only.
#include <asm/unistd.h>
#include <linux/futex.h>

#include "core/restore/restorer/protocol.h"

namespace migrate::restorer {
namespace {

long call6(uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  register uint64_t r10 asm("r10") = d;
  register uint64_t r8 asm("r8") = e;
  register uint64_t r9 asm("r9") = f;
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

/// Waits until the coordinator stops this thread for good, or is gone: then the task must go as well.
[[noreturn]] void wait_for_end(const Header& h) {
  char byte;
  for (;;) {
    const long n = call6(__NR_read, h.control_fd, reinterpret_cast<uint64_t>(&byte), 1, 0, 0, 0);
    if (n != -4 /* EINTR */ && n != -512) call6(__NR_exit_group, 1, 0, 0, 0, 0, 0);
  }
}

void send(const Header& h, uint32_t type, const Record& record, long result) {
  BlobMessage m;
  m.type = type;
  m.tid = static_cast<int32_t>(call6(__NR_gettid, 0, 0, 0, 0, 0, 0));
  m.tag = record.tag;
  m.error = static_cast<int32_t>(-result);
  m.arg0 = record.args[0];
  m.arg1 = record.args[1];
  call6(__NR_write, h.control_fd, reinterpret_cast<uint64_t>(&m), sizeof m, 0, 0, 0);
}

[[noreturn]] void run(Header& h, const List& list);

/// The child starts on its own stack with our registers: r12 and r13 carry the arguments of run().
long clone_thread(Header& h, uint64_t arguments, const List& list) {
  register uint64_t header asm("r12") = reinterpret_cast<uint64_t>(&h);
  register uint64_t todo asm("r13") = reinterpret_cast<uint64_t>(&list);
  register uint64_t entry asm("r14") = reinterpret_cast<uint64_t>(&run);
  long result;
  asm volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xor %%ebp, %%ebp\n\t"
      "mov %%r12, %%rdi\n\t"
      "mov %%r13, %%rsi\n\t"
      "call *%%r14\n\t"
      "1:"
      : "=a"(result)
      : "a"(__NR_clone3), "D"(arguments), "S"(88 /* CLONE_ARGS_SIZE_VER2 */), "r"(header), "r"(todo), "r"(entry)
      : "rcx", "r11", "rdx", "memory");
  return result;
}

/// Without PR_TIMER_CREATE_RESTORE_IDS the kernel counts ids up: create and delete until the wanted one comes.
long create_timer(uint64_t clock, uint64_t event, int wanted) {
  for (int tries = 0; tries < 100000; ++tries) {
    int id = wanted;
    const long result = call6(__NR_timer_create, clock, event, reinterpret_cast<uint64_t>(&id), 0, 0, 0);
    if (result < 0 || id == wanted) return result;
    call6(__NR_timer_delete, static_cast<uint64_t>(id), 0, 0, 0, 0, 0);
    if (id > wanted) break;
  }
  return -16;  // EBUSY
}

void await_threads(Header& h, uint32_t count) {
  for (;;) {
    const uint32_t done = __atomic_load_n(&h.threads_done, __ATOMIC_ACQUIRE);
    if (done >= count) return;
    call6(__NR_futex, reinterpret_cast<uint64_t>(&h.threads_done), FUTEX_WAIT_PRIVATE, done, 0, 0, 0);
  }
}

long time_left(uint64_t address, uint64_t until_ns, uint64_t unit_ns) {
  constexpr uint64_t kNsPerSecond = 1000000000;
  struct {
    int64_t sec, nsec;
  } now;
  const long result = call6(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, reinterpret_cast<uint64_t>(&now), 0, 0, 0, 0);
  const uint64_t now_ns = static_cast<uint64_t>(now.sec) * kNsPerSecond + static_cast<uint64_t>(now.nsec);
  uint64_t left = until_ns > now_ns ? until_ns - now_ns : 1;
  left = (left + unit_ns - 1) / unit_ns;
  volatile uint64_t* words = reinterpret_cast<volatile uint64_t*>(address);
  words[0] = left / (kNsPerSecond / unit_ns);
  words[1] = left % (kNsPerSecond / unit_ns);
  return result;
}

long perform(Header& h, const Record& r) {
  const uint64_t* a = r.args;
  switch (r.op) {
    case Op::syscall: {
      const long result = call6(r.nr, a[0], a[1], a[2], a[3], a[4], a[5]);
      if ((r.flags & kResultIsArg0) != 0 && result >= 0 && static_cast<uint64_t>(result) != a[0]) return -17;  // EEXIST
      return result;
    }
    case Op::clone_thread:
      return clone_thread(h, a[0], *reinterpret_cast<const List*>(a[1]));
    case Op::await_threads:
      await_threads(h, static_cast<uint32_t>(a[0]));
      return 0;
    case Op::timer_create:
      return create_timer(a[0], a[1], static_cast<int>(a[2]));
    case Op::thread_done:
      __atomic_add_fetch(&h.threads_done, 1, __ATOMIC_RELEASE);
      call6(__NR_futex, reinterpret_cast<uint64_t>(&h.threads_done), FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
      for (uint32_t never = 0;;) call6(__NR_futex, reinterpret_cast<uint64_t>(&never), FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
    case Op::clear_word:
      *reinterpret_cast<volatile uint64_t*>(a[0]) = 0;
      return 0;
    case Op::time_left:
      return time_left(a[0], a[1], a[2]);
    case Op::ready:
      send(h, kBlobReady, r, 0);
      wait_for_end(h);
  }
  return -38;
}

[[noreturn]] void run(Header& h, const List& list) {
  const Record* record = reinterpret_cast<const Record*>(list.records);
  for (uint64_t i = 0; i < list.count; ++i, ++record) {
    const long result = perform(h, *record);
    const bool failed = (result < 0 && result > -4096);
    if (failed && (record->flags & kMayFail) == 0) {
      send(h, kBlobFailed, *record, result);
      break;
    }
  }
  wait_for_end(h);
}

}  // namespace

/// Entered by a jump on a stack inside the region, with all signals blocked.
extern "C" [[noreturn, gnu::section(".text.entry")]] void blob_entry(Header* header, const List* list) {
  run(*header, *list);
}

}  // namespace migrate::restorer

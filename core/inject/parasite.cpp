// The code that runs inside the visited task. Freestanding; general registers only; lives in M and uses a stack in M.
#include <asm/unistd.h>
#include <linux/futex.h>
#include <linux/ioctl.h>
#include <linux/keyctl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/time.h>
#include <linux/userfaultfd.h>

#include "core/base/kernel_abi.h"
#include "core/inject/parasite_protocol.h"

using namespace migrate::parasite;

// Entry at offset 0: rdi = Area*. Afterwards on to Area::leave, the code outside of M that unmaps M.
asm(R"(
  .section .text.entry, "ax"
  .globl blob_entry
blob_entry:
  movq %rdi, %rbx
  call parasite_main
  jmpq *(%rbx)
  .text
)");

namespace {

constexpr long kSigsetBytes = 8;
constexpr long kMembarrierGetRegistrations = 1 << 9;  // 6.3
constexpr unsigned kFutex2Size32 = 2;
constexpr long kEverybody = 0x7fffffff;
constexpr long kEtimedout = 110;
constexpr long kEnosys = 38;
constexpr long kEbusy = 16;
constexpr long kPage = 4096;
constexpr long kCloseOnExec = 02000000;
constexpr long kNsecPerSec = 1'000'000'000;

long call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
  long result;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = 0;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

long address(const void* p) { return reinterpret_cast<long>(p); }

void note(Area* area, long result) {
  if (result < 0 && area->first_error == 0) area->first_error = result;
}

/// mlockall(2) of what is still to be mapped shows in what was mapped since: M, and a page of its own.
__u32 locks_future(Area* area) {
  if (call(__NR_msync, address(area), kPage, MS_INVALIDATE) != -kEbusy) return 0;  // msync(2): it is locked
  const long fresh = call(__NR_mmap, 0, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  if (fresh < 0 && fresh > -kPage) return MCL_FUTURE;  // no more may be locked
  unsigned char present = 1;
  call(__NR_mincore, fresh, kPage, address(&present));
  call(__NR_munmap, fresh, kPage);
  return (present & 1) != 0 ? MCL_FUTURE : MCL_FUTURE | MCL_ONFAULT;
}

/// modify_ldt(2) tells no length. LAR tells of each whether it is used, present or not.
bool has_more_segments() {
  constexpr __u32 kMost = 8192, kOfLdt = 4, kUser = 3;
  for (__u32 entry = kMostSegments; entry < kMost; ++entry) {
    __u32 rights = 0;
    asm volatile("lar %1, %0" : "+r"(rights) : "r"(entry << 3 | kOfLdt | kUser) : "cc");
    if (rights != 0) return true;
  }
  return false;
}

/// Timers go on while they are read. The processor may be taken away between a reading and the clock's: then once more.
void read_timer(Area* area, Timer* t) {
  constexpr long kSoon = 100'000;
  for (int tries = 0; tries < 8; ++tries) {
    note(area, call(__NR_clock_gettime, CLOCK_MONOTONIC, address(&t->before)));
    t->error = call(__NR_timer_gettime, t->id, address(&t->interval_sec));
    note(area, call(__NR_clock_gettime, CLOCK_MONOTONIC, address(&t->after)));
    if ((t->after.sec - t->before.sec) * kNsecPerSec + t->after.nsec - t->before.nsec < kSoon) break;
  }
  t->overrun = static_cast<int>(call(__NR_timer_getoverrun, t->id));
}

void collect_task(Area* area) {
  for (int i = 0; i < 64; ++i) {
    note(area, call(__NR_rt_sigaction, i + 1, 0, address(&area->sigactions[i]), kSigsetBytes));
  }
  note(area, call(__NR_clock_gettime, CLOCK_MONOTONIC, address(&area->monotonic)));
  note(area, call(__NR_clock_gettime, CLOCK_BOOTTIME, address(&area->boottime)));
  for (int i = 0; i < 3; ++i) note(area, call(__NR_getitimer, i, address(&area->itimers[i])));
  note(area, call(__NR_clock_gettime, CLOCK_MONOTONIC, address(&area->itimers_read)));
  for (unsigned i = 0; i < area->timer_count; ++i) read_timer(area, timers_of(area) + i);
  area->dumpable = call(__NR_prctl, PR_GET_DUMPABLE);
  note(area, call(__NR_prctl, PR_GET_CHILD_SUBREAPER, address(&area->child_subreaper)));
  area->thp_disabled = call(__NR_prctl, PR_GET_THP_DISABLE);
  area->mdwe = call(__NR_prctl, PR_GET_MDWE);
  area->memory_merge = call(__NR_prctl, PR_GET_MEMORY_MERGE);
  area->lock_future = locks_future(area);
  area->membarrier = call(__NR_membarrier, kMembarrierGetRegistrations);
  area->brk = call(__NR_brk, 0);
  area->ldt_bytes = call(__NR_modify_ldt, 0, address(area->ldt), sizeof area->ldt);
  if (area->ldt_bytes > 0 && has_more_segments()) area->ldt_bytes = kTooManySegments;
}

/// Of mappings that have one of their own. One that is gone since has none.
void collect_policies(Area* area) {
  constexpr long kOfAddress = 2, kBits = 64;  // MPOL_F_ADDR
  const __u64* starts = mappings_of(area);
  for (unsigned i = 0; i < area->mapping_count; ++i) {
    int mode = 0;
    if (call(__NR_get_mempolicy, address(&mode), 0, 0, static_cast<long>(starts[i]), kOfAddress) < 0 || mode == 0)
      continue;
    if (area->policy_count++ >= kMostPolicies) continue;
    Policy& p = area->policies[area->policy_count - 1];
    p.mapping = i;
    p.mode = mode;
    if (call(__NR_get_mempolicy, 0, address(&p.nodes), kBits, static_cast<long>(starts[i]), kOfAddress) < 0)
      p.mode = kNodesUnknown;
  }
}

/// Asking for the session's keyring gives who has none that of its user, as any use of keys would.
void collect_keys(Keys* keys) {
  const auto bytes_in = [](long keyring, void* to, long room) {
    const long serial = call(__NR_keyctl, KEYCTL_GET_KEYRING_ID, keyring, 0);
    return serial < 0 ? serial : call(__NR_keyctl, KEYCTL_READ, serial, address(to), room);
  };
  keys->of_thread = bytes_in(KEY_SPEC_THREAD_KEYRING, nullptr, 0);
  keys->of_process = bytes_in(KEY_SPEC_PROCESS_KEYRING, nullptr, 0);
  keys->of_session = bytes_in(KEY_SPEC_SESSION_KEYRING, keys->serials, sizeof keys->serials);
  for (long i = 0; i < kMostKeys && i * 4 < keys->of_session; ++i)
    call(__NR_keyctl, KEYCTL_DESCRIBE, keys->serials[i], address(keys->descriptions[i]), kKeyDescription);
}

void collect_attributes(const Area* area, Thread* t) {
  for (unsigned i = 0; i < area->question_count && i < kMostAttributes; ++i) {
    const Question& q = area->questions[i];
    __u64 args[5];
    for (int k = 0; k < 5; ++k)
      args[k] = k == q.address_at ? static_cast<__u64>(address(&t->attributes[i])) : q.args[k];
    if (q.address_at >= 0) t->attributes[i] = 0;
    const long result = call(static_cast<long>(q.number), static_cast<long>(args[0]), static_cast<long>(args[1]),
                             static_cast<long>(args[2]), static_cast<long>(args[3]), static_cast<long>(args[4]));
    if (result < 0) t->attributes[i] = kUnanswered;
    if (result >= 0 && q.address_at < 0) t->attributes[i] = static_cast<__u64>(result);
  }
}

void collect_thread(Thread* t) {
  t->altstack_result = call(__NR_sigaltstack, 0, address(&t->altstack));
  t->tid_address_result = call(__NR_prctl, PR_GET_TID_ADDRESS, address(&t->tid_address));
  t->pdeath_result = call(__NR_prctl, PR_GET_PDEATHSIG, address(&t->pdeath_signal));
}

/// When a wait ends that nobody ends. To be asked before `done` is counted up: afterwards the tracer has the area.
Timespec end_of_stay(const Area* area) {
  Timespec until = area->monotonic;
  until.nsec += area->stay_nsec;
  until.sec += until.nsec / kNsecPerSec;
  until.nsec %= kNsecPerSec;
  return until;
}

/// Waits until the tracer is gone, the time is up (both: false), or `proceed` is set where `or_proceed` is.
/// futex_waitv has no restart block, unlike a futex wait with a time-out: that of the interrupted call survives.
bool wait_for_tracer(Area* area, Timespec until, bool or_proceed) {
  struct {
    __u64 value, address;
    __u32 flags, reserved;
  } waiters[2] = {{area->stay_value, static_cast<__u64>(address(&area->stay)), kFutex2Size32, 0},
                  {0, static_cast<__u64>(address(&area->proceed)), kFutex2Size32, 0}};
  for (;;) {
    const long result =
        call(__NR_futex_waitv, address(waiters), or_proceed ? 2 : 1, 0, address(&until), CLOCK_MONOTONIC);
    if (result == -kEtimedout || result == -kEnosys) return false;
    if (__atomic_load_n(&area->stay, __ATOMIC_ACQUIRE) != area->stay_value) break;
    if (or_proceed && __atomic_load_n(&area->proceed, __ATOMIC_ACQUIRE) != 0) return true;
  }
  // The tracer's death wakes one waiter only.
  call(__NR_futex, address(&area->stay), FUTEX_WAKE, kEverybody);
  return false;
}

void count_up(Area* area) {
  __atomic_add_fetch(&area->done, 1, __ATOMIC_RELEASE);
  call(__NR_futex, address(&area->done), FUTEX_WAKE, 1);
}

/// Returns whether the tracer is still there.
bool lend_userfaultfd(Area* area) {
  call(__NR_clock_gettime, CLOCK_MONOTONIC, address(&area->monotonic));
  const long fd = call(__NR_userfaultfd, kCloseOnExec | UFFD_USER_MODE_ONLY);
  long result = fd;
  if (fd >= 0) {
    uffdio_api api = {UFFD_API, area->uffd_features, 0};
    const long error = call(__NR_ioctl, fd, UFFDIO_API, address(&api));
    if (error < 0) result = error;
  }
  area->uffd = result;
  collect_policies(area);
  collect_keys(&area->keys);
  const Timespec until = end_of_stay(area);
  count_up(area);
  const bool stays = wait_for_tracer(area, until, true);
  if (fd >= 0) call(__NR_close, fd);
  return stays;
}

}  // namespace

extern "C" __attribute__((used, visibility("hidden"))) void parasite_main(Area* area) {
  if (area->purpose == kUserfaultfd) {
    if (!lend_userfaultfd(area)) return;
  } else {
    collect_task(area);
    collect_thread(&area->leader);
    collect_attributes(area, &area->leader);
    collect_policies(area);
    collect_keys(&area->keys);
  }
  const Timespec until = end_of_stay(area);
  count_up(area);
  wait_for_tracer(area, until, false);
}

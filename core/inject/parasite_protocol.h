// What the parasite and the tracer share: the layout of the area M that both map. Plain data, no pointers of ours.
// Included by freestanding code: no library headers.
#pragma once

#include <linux/types.h>

namespace migrate::parasite {

struct Timespec {
  __s64 sec;
  __s64 nsec;
};

/// sigaltstack(2)'s stack_t.
struct AltStack {
  __u64 sp;
  __s32 flags;
  __u32 pad;
  __u64 size;
};

struct Sigaction {
  __u64 handler;
  __u64 flags;
  __u64 restorer;
  __u64 mask;
};

struct Itimer {
  __s64 interval_sec, interval_usec, value_sec, value_usec;
};

struct Timer {
  __s32 id;       ///< asked for
  __s32 overrun;  ///< negative errno on failure
  __s64 error;    ///< of timer_gettime
  __s64 interval_sec, interval_nsec, value_sec, value_nsec;
  Timespec before, after;  ///< CLOCK_MONOTONIC around timer_gettime
};

/// A call that tells an attribute (attributes.h). The leader's makes it with the address of `value`, if `address_at` is
/// not negative, as that argument.
struct Question {
  __u64 number;
  __u64 args[5];
  __s32 address_at;
  __u32 pad;
};
enum : __u32 { kMostAttributes = 7 };  // results of other threads come in one register
/// Where nothing was answered.
enum : __u64 { kUnanswered = 1ull << 63 };

/// What every thread tells. Return values are those of the system calls (negative errno on failure).
struct Thread {
  AltStack altstack;
  __u64 tid_address;
  __s32 pdeath_signal;
  __s32 pad;
  __s64 altstack_result, tid_address_result, pdeath_result;
  __u64 attributes[kMostAttributes];
};

/// mbind(2), of a mapping.
struct Policy {
  __u32 mapping;  ///< of those asked for
  __s32 mode;     ///< kNodesUnknown: one whose nodes cannot be read
  __u64 nodes;
};
enum : __u32 { kMostPolicies = 128 };
enum : __s32 { kNodesUnknown = -1 };

/// keyrings(7) of the leader. Of those that it has for itself, as thread and as process, how many bytes of keys are in
/// them; of its session's, which keys.
enum : __u32 { kMostKeys = 6, kKeyDescription = 80 };
struct Keys {
  __s64 of_thread, of_process, of_session;  ///< bytes, four a key; a negative errno where there is none, or no keys
  __s32 serials[kMostKeys];
  char descriptions[kMostKeys][kKeyDescription];  ///< "type;uid;gid;perm;name"; empty where it cannot be had
};

/// What the parasite is sent for.
enum Purpose : __u32 {
  kHarvest = 0,      ///< tell everything, wait for the cure
  kUserfaultfd = 1,  ///< make a userfaultfd, count `done` up, wait for `proceed`, close it, count up, wait for the cure
};

enum : __u32 { kMostSegments = 256 };
enum : __s64 { kTooManySegments = -7 };  // E2BIG

/// M starts with this, then `timer_count` Timers, `mapping_count` starts of mappings, then the parasite's stack, then,
/// in pages of its own, its code.
struct Area {
  __u64 leave;  ///< address of the code that unmaps M and goes back; the blob's entry reads it at offset 0
  __u32 done;   ///< futex: visits that have finished
  __u32 stay;   ///< futex: parasite and slots wait while it has `stay_value` (DeathNotice)
  __u32 stay_value;
  __u32 proceed;    ///< futex: no longer 0 when the tracer has taken the descriptor, or gives up
  __s64 stay_nsec;  ///< they wait at most so long
  __u32 timer_count;
  __u32 purpose;
  __u64 uffd_features;  ///< wanted
  __s64 uffd;           ///< the descriptor's number while `done` is 1, or a negative errno
  __u32 question_count;
  __u32 mapping_count;
  __u32 policy_count;  ///< found; there may be no room for all
  __u32 pad;
  Policy policies[kMostPolicies];
  Keys keys;
  Question questions[kMostAttributes];
  Sigaction sigactions[64];
  __s64 first_error;  ///< of the calls that cannot fail
  Itimer itimers[3];
  __s64 dumpable, thp_disabled, brk, membarrier;
  __s64 mdwe, memory_merge;  ///< a negative errno where the kernel lacks them
  __s32 child_subreaper;
  __u32 lock_future;             ///< MCL_FUTURE, MCL_ONFAULT
  Timespec monotonic, boottime;  ///< before the timers
  Timespec itimers_read;         ///< CLOCK_MONOTONIC right after getitimer(2)
  __s64 ldt_bytes;               ///< of modify_ldt(2)
  __u64 ldt[kMostSegments];
  Thread leader;
  Thread thread;  ///< of the thread that is being visited
};

inline Timer* timers_of(Area* area) { return reinterpret_cast<Timer*>(area + 1); }
inline __u64* mappings_of(Area* area) { return reinterpret_cast<__u64*>(timers_of(area) + area->timer_count); }

}  // namespace migrate::parasite

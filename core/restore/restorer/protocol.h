// What the host side and the restorer blob agree on. The blob is an interpreter of lists of records; everything it uses
// stands in one region of memory that is part of neither the shell's nor the task's final address space:
//   [code][Header][Clone, records, data ...][thread stacks]
#pragma once

#include <cstdint>

namespace migrate::restorer {

enum class Op : uint32_t {
  syscall,        ///< nr(args)
  clone_thread,   ///< args: 0 = address of the clone3 arguments, 1 = address of the thread's List
  await_threads,  ///< until Header::threads_done equals args[0]
  thread_done,    ///< counts this thread and waits for the end; the last record of a thread's list
  timer_create,   ///< args: 0 = clock, 1 = address of sigevent, 2 = wanted id
  clear_word,     ///< args: 0 = address of 8 bytes in the task's memory
  time_left,      ///< args: 0 = address of two words for what is left until CLOCK_MONOTONIC is args[1] ns, at least one
                  ///< unit: seconds, and units of args[2] ns
  ready,          ///< tells the coordinator, then waits for the end; the last record of the leader's list
};

/// Names the failed step in the coordinator's message.
enum class Tag : uint32_t {
  unmap,
  move_memory,
  map_memory,
  protect,
  advise,
  lock_memory,
  vdso,
  mm_layout,
  folder,
  signal_action,
  clone_thread,
  timer,
  credentials,
  capabilities,
  limits,
  scheduling,
  name,
  personality,
  robust_list,
  altstack,
  rseq,
  tid_address,
  pending_signal,
  parent_death_signal,
  process_flags,
  memory_policy,
  membarrier,
  seal,
  count
};

inline constexpr uint32_t kMayFail = 1;       ///< failure is ignored
inline constexpr uint32_t kResultIsArg0 = 2;  ///< anything but args[0] as the result is a failure (mmap at an address)

struct Record {
  Op op;
  Tag tag;
  uint32_t flags;
  uint32_t nr;

  uint64_t args[6];
};

struct List {
  uint64_t records;  ///< address
  uint64_t count;
};

struct Header {
  uint32_t control_fd;
  uint32_t threads_done;  ///< atomic, futex
};

/// Messages on the control socket that the blob sends.
inline constexpr uint32_t kBlobReady = 0x59444552;
inline constexpr uint32_t kBlobFailed = 0x4c494146;
struct BlobMessage {
  uint32_t type;
  int32_t tid;
  Tag tag;
  int32_t error;
  uint64_t arg0, arg1;
};

}  // namespace migrate::restorer

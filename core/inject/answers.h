// What the injected code answers. The answers lie in memory that the visited program shares, and that others may share
// with it: whatever stands there may be a lie, and change at any moment. So each part is copied once and looked at
// then: what no kernel answers is Corrupt. Lies that a kernel could have told remain, and harm the liar
// (core/inject/README.md).
#pragma once

#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "core/inject/harvest.h"
#include "core/inject/parasite_protocol.h"
#include "core/inject/slot_code.h"

namespace migrate {

/// A copy for which each byte is read once, whatever the compiler thinks of reading it again.
template <class T>
T copy_once(const T& shared) {
  static_assert(std::is_trivially_copyable_v<T>);
  T copy;
  std::memcpy(static_cast<void*>(&copy), &shared, sizeof copy);
  asm volatile("" : "+m"(copy));  // from here on it is what it is
  return copy;
}

/// What a system call returned: Error with its number if it failed, naming `call` and `who`; Corrupt for a failure that
/// is none of the kernel's.
int64_t answered_result(int64_t result, std::string_view call, const std::string& who);
/// CLOCK_MONOTONIC, CLOCK_BOOTTIME.
timespec answered_time(const parasite::Timespec& time, const std::string& who);

/// All that the leader told, but for `threads`, `posix_timers` and `policies`. From copies.
TaskHarvest answered_task(const parasite::Area& area, Pid pid);
/// One that is asked for its memory policy.
struct AskedMapping {
  RemoteRange range;
  bool object;  ///< of memory that others may have mapped: the policy is that object's
};
/// Refusal for a task with keys of its own, or in its session's keyring. Those of its user are the host's.
void refuse_keys(const parasite::Area& area, Pid pid);
/// Throws Refusal for those of objects: of which parts they are, no mapping tells.
std::vector<MappingPolicy> answered_policies(const parasite::Area& area, std::span<const AskedMapping> mappings,
                                             Pid pid);
/// Of a thread; `securebits` is what its registers told.
ThreadHarvest answered_thread(const parasite::Thread& thread, Tid tid, int64_t securebits);
/// `results` stand for the area's, which a thread's slot does not write.
ThreadHarvest answered_thread(parasite::Thread thread, Tid tid, const ThreadSlotResults& results);
TimerHarvest answered_timer(const parasite::Area& area, const parasite::Timer& timer, int id, Pid pid);
/// The number of the descriptor that was lent.
int answered_userfaultfd(int64_t number, Pid pid);

}  // namespace migrate

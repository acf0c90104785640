// The System V objects of an IPC namespace, as /proc/sysvipc lists them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace migrate {

enum class IpcKind : uint8_t { segment = 1, semaphores = 2, queue = 3 };

/// What every object has. Pids are those of the pid namespace of the /proc that was read, 0: nobody yet, or not
/// visible.
struct IpcObject {
  IpcKind kind = IpcKind::segment;
  int id = 0;
  uint32_t key = 0;   ///< 0: IPC_PRIVATE
  uint32_t mode = 0;  ///< with SHM_DEST and SHM_LOCKED
  uint32_t uid = 0, gid = 0, cuid = 0, cgid = 0;
  int64_t changed = 0;  ///< seconds; created, or IPC_SET, or its semaphores set
  uint64_t size = 0;    ///< bytes of a segment, semaphores of a set, messages of a queue

  pid_t creator = 0;               ///< of a segment
  uint64_t attached = 0;           ///< mappings of a segment
  pid_t last_a = 0, last_b = 0;    ///< segment: who attached or detached last; queue: who sent, who received last
  int64_t used_a = 0, used_b = 0;  ///< when: attached, detached; sent, received; semop(2)

  /// "semaphore set 3 (key 0x1234)"
  std::string describe() const;
  /// "ipcrm -s 3"
  std::string how_to_remove() const;
};

/// What a segment is made with and keeps for ever.
struct SegmentMaker {
  uint32_t key = 0, cuid = 0, cgid = 0;
  uint64_t bytes = 0;
  bool operator==(const SegmentMaker&) const = default;
};

/// What `/proc/sysvipc/shm`, `sem` and `msg` tell. Throws Corrupt.
std::vector<IpcObject> parse_sysvipc(IpcKind kind, std::string_view text);
/// All objects of the calling thread's IPC namespace. Kernels without System V IPC have none.
std::vector<IpcObject> list_ipc_objects();

}  // namespace migrate

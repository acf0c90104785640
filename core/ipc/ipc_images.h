// System V objects in images: ipcns-*.img, in CRIU's format, and migrate-ipc.img, what that has no room for.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "core/image/image_set.h"
#include "core/ipc/sysv_objects.h"
#include "core/ipc/undo_lists.h"
#include "ext/ext.pb.h"
#include "images/ipc-msg.pb.h"
#include "images/ipc-sem.pb.h"
#include "images/ipc-shm.pb.h"
#include "images/ipc-var.pb.h"

namespace migrate {

/// The settings of the calling thread's IPC namespace: limits.
img::ipc_var_entry read_ipc_settings();
/// Those that differ from what the namespace has. `trusted`: the images may ask for more than the kernel gives
/// everybody. Throws Error, Refusal.
void write_ipc_settings(const img::ipc_var_entry& settings, bool trusted);

/// Describes `objects` of the calling thread's IPC namespace as that of namespace `ns`; nothing of them changes.
/// `pid_of`: a process's number in the images, 0 for others. Throws Error.
void write_ipc_images(const std::vector<IpcObject>& objects, const std::vector<UndoList>& undos, uint32_t ns,
                      const std::function<pid_t(pid_t)>& pid_of, ImageSet& images);

struct ImageSemaphores {
  img::ipc_sem_entry entry;
  std::vector<uint16_t> values;
};
struct ImageQueue {
  struct Message {
    int64_t type = 0;
    std::vector<std::byte> text;
  };
  img::ipc_msg_entry entry;
  std::vector<Message> messages;
};

/// What a restore has to make; checked.
struct IpcImages {
  std::optional<img::ipc_var_entry> settings;
  std::vector<img::ipc_shm_entry> segments;
  std::vector<ImageSemaphores> sets;
  std::vector<ImageQueue> queues;
  std::map<std::pair<IpcKind, int>, ext::IpcObject> extra;

  const ext::IpcObject& extra_of(IpcKind kind, uint32_t id) const {
    const auto it = extra.find({kind, static_cast<int>(id)});
    return it == extra.end() ? ext::IpcObject::default_instance() : it->second;
  }
};
/// nullopt: the tree has no IPC namespace of its own. Throws Corrupt; Refusal for what cannot be restored.
std::optional<IpcImages> read_ipc_images(const ImageSet& images);

SegmentMaker maker_of(const img::ipc_shm_entry& entry);

}  // namespace migrate

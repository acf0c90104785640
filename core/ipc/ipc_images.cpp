#include "core/ipc/ipc_images.h"

#include <sys/msg.h>
#include <sys/sem.h>

#include <cstring>
#include <set>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "images/core.pb.h"
#include "images/inventory.pb.h"
#include "images/pstree.pb.h"

namespace migrate {
namespace {

constexpr std::string_view kExtra = "migrate-ipc.img";
constexpr size_t kUnit = sizeof(uint64_t);                          // payloads are padded to it
constexpr uint32_t kMostSemaphores = 65536, kMostBytes = 64 << 20;  // of one message
constexpr uint64_t kMostSegment = uint64_t{1} << 46;

constexpr size_t padded(size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }

void fill(const IpcObject& o, img::ipc_desc_entry& out) {
  out.set_key(o.key);
  out.set_uid(o.uid);
  out.set_gid(o.gid);
  out.set_cuid(o.cuid);
  out.set_cgid(o.cgid);
  out.set_mode(o.mode);
  out.set_id(static_cast<uint32_t>(o.id));
}

void write_padded(ImageWriter& out, std::vector<std::byte> bytes) {
  bytes.resize(padded(bytes.size()));
  out.raw(bytes);
}

class Writer {
 public:
  Writer(const std::vector<UndoList>& undos, uint32_t ns, const std::function<pid_t(pid_t)>& pid_of, ImageSet& images)
      : undos_(undos), ns_(ns), pid_of_(pid_of), images_(images) {}

  void write(const IpcObject& o) {
    ext::IpcObject extra;
    extra.set_kind(static_cast<uint32_t>(o.kind));
    extra.set_id(static_cast<uint32_t>(o.id));
    switch (o.kind) {
      case IpcKind::segment:
        write_segment(o, extra);
        break;
      case IpcKind::semaphores:
        write_set(o, extra);
        break;
      case IpcKind::queue:
        write_queue(o, extra);
        break;
    }
    images_.write(std::string(kExtra), magic::kMigrateExt).entry(extra);
  }

 private:
  void add_pid(pid_t pid, ext::IpcObject& extra) const { extra.add_pids(static_cast<uint32_t>(pid_of_(pid))); }

  void write_segment(const IpcObject& o, ext::IpcObject& extra) {
    img::ipc_shm_entry entry;
    fill(o, *entry.mutable_desc());
    entry.set_size(o.size);
    entry.set_in_pagemaps(true);
    images_.write(image_name("ipcns-shm", ns_), magic::kIpcShm).entry(entry);
    add_pid(o.creator, extra);
    add_pid(o.last_a, extra);
  }

  void write_set(const IpcObject& o, ext::IpcObject& extra) {
    img::ipc_sem_entry entry;
    fill(o, *entry.mutable_desc());
    entry.set_nsems(static_cast<uint32_t>(o.size));
    std::vector<uint16_t> values(o.size);
    check(::semctl(o.id, 0, GETALL, values.data()), "read", o.describe());
    std::vector<std::byte> bytes(values.size() * sizeof(uint16_t));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    ImageWriter out = images_.write(image_name("ipcns-sem", ns_), magic::kIpcSem);
    out.entry(entry);
    write_padded(out, std::move(bytes));
    for (int i = 0; i < static_cast<int>(o.size); ++i)
      add_pid(check(::semctl(o.id, i, GETPID), "read", o.describe()), extra);
    for (const UndoList& undo : undos_) {
      if (undo.set != o.id) continue;
      ext::IpcObject::Undo& out_undo = *extra.add_undos();
      out_undo.set_pid(static_cast<uint32_t>(pid_of_(undo.pid)));
      for (uint64_t i = 0; i < o.size; ++i) out_undo.add_adjustments(undo.adjustments.at(i));
    }
  }

  void write_queue(const IpcObject& o, ext::IpcObject& extra) {
    msqid_ds now{};
    check(::msgctl(o.id, IPC_STAT, &now), "look at", o.describe());
    img::ipc_msg_entry entry;
    fill(o, *entry.mutable_desc());
    entry.set_qbytes(static_cast<uint32_t>(now.msg_qbytes));
    entry.set_qnum(static_cast<uint32_t>(o.size));
    ImageWriter out = images_.write(image_name("ipcns-msg", ns_), magic::kIpcMsg);
    out.entry(entry);
    std::vector<std::byte> buffer(sizeof(long) + now.__msg_cbytes);
    for (uint64_t i = 0; i < o.size; ++i) {
      // The i-th message, which stays in the queue (Linux 3.8, CONFIG_CHECKPOINT_RESTORE).
      const ssize_t n =
          check(::msgrcv(o.id, buffer.data(), now.__msg_cbytes, static_cast<long>(i), MSG_COPY | IPC_NOWAIT),
                "copy a message of", o.describe());
      int64_t type = 0;
      std::memcpy(&type, buffer.data(), sizeof type);
      img::ipc_msg message;
      message.set_mtype(static_cast<uint64_t>(type));
      message.set_msize(static_cast<uint32_t>(n));
      out.entry(message);
      const auto text = buffer.begin() + sizeof(long);
      write_padded(out, {text, text + n});
    }
    add_pid(o.last_a, extra);
    add_pid(o.last_b, extra);
  }

  const std::vector<UndoList>& undos_;
  uint32_t ns_;
  const std::function<pid_t(pid_t)>& pid_of_;
  ImageSet& images_;
};

/// The namespace id of the tree; 0: that of whoever dumped it.
uint32_t own_namespace(const ImageSet& images) {
  img::inventory_entry inventory;
  if (!images.get("inventory.img", magic::kInventory, inventory)) return 0;
  img::pstree_entry root;
  images.need("pstree.img", magic::kPstree, root);
  img::task_kobj_ids_entry ids;
  if (!images.get(image_name("ids", root.pid()), magic::kIds, ids)) return 0;
  return ids.ipc_ns_id() == inventory.root_ids().ipc_ns_id() ? 0 : ids.ipc_ns_id();
}

/// Numbers of one kind are unique, and so are keys.
class Seen {
 public:
  explicit Seen(std::string image) : image_(std::move(image)) {}
  void add(const img::ipc_desc_entry& desc) {
    if (desc.id() > INT32_MAX || !ids_.insert(desc.id()).second) throw Corrupt(image_, "a number stands twice");
    if (desc.key() != 0 && !keys_.insert(desc.key()).second) throw Corrupt(image_, "a key stands twice");
  }
  const std::string& image() const { return image_; }

 private:
  std::string image_;
  std::set<uint32_t> ids_, keys_;
};

void read_segments(const ImageSet& images, uint32_t ns, IpcImages& out) {
  Seen seen(image_name("ipcns-shm", ns));
  auto reader = images.read(seen.image(), magic::kIpcShm);
  for (img::ipc_shm_entry e; reader && reader->next(e); e.Clear()) {
    seen.add(e.desc());
    if (e.size() == 0 || e.size() > kMostSegment) throw Corrupt(seen.image(), "a segment of impossible size");
    const std::string what = "System V shared memory segment " + std::to_string(e.desc().id());
    if (e.hugetlb_flag() != 0) throw Refusal(what + " is of huge pages", "this cannot be restored yet");
    if (!e.in_pagemaps())
      throw Refusal("the content of " + what + " stands in an image of its own, as before CRIU 3",
                    "dump it with a newer version");
    out.segments.push_back(e);
  }
}

void read_sets(const ImageSet& images, uint32_t ns, IpcImages& out) {
  Seen seen(image_name("ipcns-sem", ns));
  auto reader = images.read(seen.image(), magic::kIpcSem);
  for (ImageSemaphores set; reader && reader->next(set.entry); set = {}) {
    seen.add(set.entry.desc());
    const size_t count = set.entry.nsems();
    if (count == 0 || count > kMostSemaphores) throw Corrupt(seen.image(), "a set of impossible size");
    const auto bytes = reader->raw(padded(count * sizeof(uint16_t)));
    set.values.resize(count);
    std::memcpy(set.values.data(), bytes.data(), count * sizeof(uint16_t));
    out.sets.push_back(std::move(set));
  }
}

void read_queues(const ImageSet& images, uint32_t ns, IpcImages& out) {
  Seen seen(image_name("ipcns-msg", ns));
  auto reader = images.read(seen.image(), magic::kIpcMsg);
  for (ImageQueue queue; reader && reader->next(queue.entry); queue = {}) {
    seen.add(queue.entry.desc());
    for (uint32_t i = 0; i < queue.entry.qnum(); ++i) {
      img::ipc_msg message;
      if (!reader->next(message)) throw Corrupt(seen.image(), "a message is missing");
      const auto type = static_cast<int64_t>(message.mtype());
      if (type < 1 || message.msize() > kMostBytes) throw Corrupt(seen.image(), "an impossible message");
      const auto bytes = reader->raw(padded(message.msize())).first(message.msize());
      queue.messages.push_back({type, {bytes.begin(), bytes.end()}});
    }
    out.queues.push_back(std::move(queue));
  }
}

}  // namespace

void write_ipc_images(const std::vector<IpcObject>& objects, const std::vector<UndoList>& undos, uint32_t ns,
                      const std::function<pid_t(pid_t)>& pid_of, ImageSet& images) {
  images.put(image_name("ipcns-var", ns), magic::kIpcVar, read_ipc_settings());
  Writer writer(undos, ns, pid_of, images);
  for (const IpcObject& o : objects) writer.write(o);
}

std::optional<IpcImages> read_ipc_images(const ImageSet& images) {
  const uint32_t ns = own_namespace(images);
  if (ns == 0) return std::nullopt;
  IpcImages out;
  if (img::ipc_var_entry settings; images.get(image_name("ipcns-var", ns), magic::kIpcVar, settings))
    out.settings = settings;
  read_segments(images, ns, out);
  read_sets(images, ns, out);
  read_queues(images, ns, out);
  auto reader = images.read(std::string(kExtra), magic::kMigrateExt);
  for (ext::IpcObject e; reader && reader->next(e); e.Clear())
    out.extra[{static_cast<IpcKind>(e.kind()), static_cast<int>(e.id())}] = e;
  return out;
}

SegmentMaker maker_of(const img::ipc_shm_entry& entry) {
  return {entry.desc().key(), entry.desc().cuid(), entry.desc().cgid(), entry.size()};
}

}  // namespace migrate

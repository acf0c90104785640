#include "core/ipc/ipc_restore.h"

#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "core/base/error.h"
#include "core/ipc/ipc_namespace.h"

namespace migrate {
namespace {

constexpr uint32_t kPermissions = 0777;
constexpr int kHighest = 32767;  // SEMVMX

/// The number that the next object gets. Needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
void choose_id(const char* setting, int id) {
  const Fd file = open_ipc_setting(std::string("kernel/") + setting, O_WRONLY);
  write_full(file.get(), as_bytes_of(std::to_string(id)), std::string("/proc/sys/kernel/") + setting);
}

/// Calls `make` as user `uid` and group `gid`, who are the creator for ever of what it makes: in a process of its own,
/// since who changes its ids loses its capabilities.
template <class Make>
void as_user(uint32_t uid, uint32_t gid, const std::string& what, Make make) {
  const pid_t child = check(::fork(), "fork a process to make", what);
  if (child == 0) {
    const bool is_it = (gid == ::getegid() || ::syscall(SYS_setresgid, -1, gid, -1) == 0) &&
                       (uid == ::geteuid() || ::syscall(SYS_setresuid, -1, uid, -1) == 0);
    ::_exit(is_it && make() >= 0 ? 0 : errno == 0 ? EIO : errno);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) throw Error("make", what, WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
}

template <class Ds>
void set_owner(const img::ipc_desc_entry& desc, Ds& now) {
  auto& perm = [&]() -> auto& {
    if constexpr (requires { now.shm_perm; })
      return now.shm_perm;
    else if constexpr (requires { now.sem_perm; })
      return now.sem_perm;
    else
      return now.msg_perm;
  }
  ();
  perm.uid = desc.uid();
  perm.gid = desc.gid();
  perm.mode = static_cast<unsigned short>(desc.mode() & kPermissions);
}

void set_segment(const img::ipc_shm_entry& e, bool trusted) {
  const auto id = static_cast<int>(e.desc().id());
  const std::string what = "System V shared memory segment " + std::to_string(id);
  shmid_ds now{};
  check(::shmctl(id, IPC_STAT, &now), "look at", what);
  set_owner(e.desc(), now);
  check(::shmctl(id, IPC_SET, &now), "set the owner of", what);
  if ((e.desc().mode() & SHM_LOCKED) == 0) return;
  if (trusted) {
    check(::shmctl(id, SHM_LOCK, nullptr), "lock", what);
  } else {
    as_user(e.desc().uid(), e.desc().gid(), "locked " + what, [&] { return ::shmctl(id, SHM_LOCK, nullptr); });
  }
}

void make_set(const ImageSemaphores& set) {
  const img::ipc_desc_entry& desc = set.entry.desc();
  const auto id = static_cast<int>(desc.id());
  const std::string what = "System V semaphore set " + std::to_string(id);
  choose_id("sem_next_id", id);
  as_user(desc.cuid(), desc.cgid(), what, [&] {
    return ::semget(static_cast<key_t>(desc.key()), static_cast<int>(set.values.size()), IPC_CREAT | IPC_EXCL | 0600);
  });
  semid_ds now{};
  check(::semctl(id, 0, IPC_STAT, &now), "find", what);
  set_owner(desc, now);
  check(::semctl(id, 0, IPC_SET, &now), "set the owner of", what);
  check(::semctl(id, 0, SETALL, set.values.data()), "set the values of", what);
}

void make_queue(const ImageQueue& queue, bool trusted) {
  const img::ipc_desc_entry& desc = queue.entry.desc();
  const auto id = static_cast<int>(desc.id());
  const std::string what = "System V message queue " + std::to_string(id);
  choose_id("msg_next_id", id);
  as_user(desc.cuid(), desc.cgid(), what,
          [&] { return ::msgget(static_cast<key_t>(desc.key()), IPC_CREAT | IPC_EXCL | 0600); });
  msqid_ds now{};
  check(::msgctl(id, IPC_STAT, &now), "find", what);
  size_t bytes = 0;
  for (const ImageQueue::Message& m : queue.messages) bytes += m.text.size();
  // The limit counts bytes, and messages, too.
  if (!trusted && std::max<size_t>({bytes, queue.messages.size(), queue.entry.qbytes()}) > now.msg_qbytes)
    throw Refusal(what + " holds more than only an administrator can let it", "lower its limit at the source");
  // A queue may hold more than its limit, which was lowered then.
  set_owner(desc, now);
  const auto limit = now.msg_qbytes;
  now.msg_qbytes = std::max<size_t>({bytes, queue.messages.size(), limit});
  check(::msgctl(id, IPC_SET, &now), "set the owner of", what);
  for (const ImageQueue::Message& m : queue.messages) {
    std::vector<std::byte> buffer(sizeof(long) + m.text.size());
    std::memcpy(buffer.data(), &m.type, sizeof m.type);
    if (!m.text.empty()) std::memcpy(buffer.data() + sizeof(long), m.text.data(), m.text.size());
    check(::msgsnd(id, buffer.data(), m.text.size(), IPC_NOWAIT), "fill", what);
  }
  now.msg_qbytes = queue.entry.qbytes();
  check(::msgctl(id, IPC_SET, &now), "set the limit of", what);
}

}  // namespace

void check_ipc_owners(const IpcImages& images, const std::set<uint32_t>& uids, const std::set<uint32_t>& gids) {
  const auto check_desc = [&](const char* kind, const img::ipc_desc_entry& desc) {
    const std::string what = std::string("System V ") + kind + " " + std::to_string(desc.id());
    constexpr uint32_t kUnknownId = UINT32_MAX;  // setresuid(2) takes it for "as it is", which is root's
    for (const uint32_t uid : {desc.uid(), desc.cuid()})
      if (uid == kUnknownId || !uids.contains(uid))
        throw Refusal(what + " belongs to user " + std::to_string(uid) + ", whom no task of the tree runs as",
                      "have the program make it as its own user");
    for (const uint32_t gid : {desc.gid(), desc.cgid()})
      if (gid == kUnknownId || !gids.contains(gid))
        throw Refusal(what + " belongs to group " + std::to_string(gid) + ", which no task of the tree is in",
                      "have the program make it as its own group");
  };
  for (const img::ipc_shm_entry& e : images.segments) check_desc("shared memory segment", e.desc());
  for (const ImageSemaphores& set : images.sets) check_desc("semaphore set", set.entry.desc());
  for (const ImageQueue& queue : images.queues) check_desc("message queue", queue.entry.desc());
}

void IpcRestorer::enter() {
  if (entered()) return;
  Fd home = open_path("/proc/self/ns/ipc", O_RDONLY);
  check(::unshare(CLONE_NEWIPC), "make", "the IPC namespace of the tree");
  home_ = std::move(home);
}

void IpcRestorer::leave() {
  if (entered()) check(::setns(home_.get(), CLONE_NEWIPC), "leave", "the IPC namespace of the tree");
  home_.reset();
}

Fd IpcRestorer::make_segment(int id, const SegmentMaker& maker) {
  enter();
  const std::string what = "System V shared memory segment " + std::to_string(id);
  choose_id("shm_next_id", id);
  as_user(maker.cuid, maker.cgid, what, [&] {
    return ::shmget(static_cast<key_t>(maker.key), maker.bytes, IPC_CREAT | IPC_EXCL | SHM_NORESERVE | 0600);
  });
  // It has a descriptor only through a mapping.
  void* at = ::shmat(id, nullptr, 0);
  if (at == reinterpret_cast<void*>(-1)) throw Error("attach", what, errno);  // NOLINT
  const auto start = reinterpret_cast<uint64_t>(at);
  std::array<char, 96> link;
  std::snprintf(link.data(), link.size(), "/proc/self/map_files/%lx-%lx", start, start + page_ceil(maker.bytes));
  const Fd file(::open(link.data(), O_RDWR | O_CLOEXEC));
  const int error = errno;
  ::shmdt(at);
  if (!file) throw Error("open the memory of", what, error);
  return file.dup();
}

void IpcRestorer::remove_segment(int id) { check(::shmctl(id, IPC_RMID, nullptr), "remove", "a segment made early"); }

void IpcRestorer::make_objects(const IpcImages& images, bool trusted) {
  enter();
  trusted_ = trusted;
  if (images.settings) {
    img::ipc_var_entry first = *images.settings;
    first.set_shm_rmid_forced(0);  // or nothing would stay that nobody has attached
    write_ipc_settings(first, trusted);
    if (images.settings->shm_rmid_forced() != 0) last_ = images.settings;
  }
  for (const img::ipc_shm_entry& e : images.segments) {
    set_segment(e, trusted);
    if ((e.desc().mode() & SHM_DEST) != 0) destroyed_.push_back(static_cast<int>(e.desc().id()));
  }
  for (const ImageSemaphores& set : images.sets) make_set(set);
  for (const ImageQueue& queue : images.queues) make_queue(queue, trusted);
}

namespace {

/// Two steps at once that leave the value as it is. What the first adds must not be too much.
void make_pair(int id, unsigned short semaphore, int change, short flags, const std::string& what) {
  const int value = check(::semctl(id, semaphore, GETVAL), "read", what);
  const int size = change < 0 ? -change : change;
  std::array<sembuf, 2> steps{sembuf{semaphore, static_cast<short>(change), flags},
                              sembuf{semaphore, static_cast<short>(-change), 0}};
  const bool down_first = value + size > kHighest;
  if (down_first == (steps[0].sem_op > 0)) std::swap(steps[0], steps[1]);
  timespec patience{1, 0};  // others do the same for a moment
  check(::semtimedop(id, steps.data(), steps.size(), &patience), "take part in", what);
}

}  // namespace

void make_undos(const IpcImages& images, pid_t pid) {
  for (const ImageSemaphores& set : images.sets) {
    const uint32_t id = set.entry.desc().id();
    for (const ext::IpcObject::Undo& undo : images.extra_of(IpcKind::semaphores, id).undos()) {
      if (undo.pid() != static_cast<uint32_t>(pid)) continue;
      const std::string what = "System V semaphore set " + std::to_string(id);
      const int semaphores = std::min(undo.adjustments_size(), static_cast<int>(set.values.size()));
      for (int i = 0; i < semaphores; ++i) {
        const int change = -undo.adjustments(i);
        if (change < -kHighest || change > kHighest) throw Corrupt("migrate-ipc.img", "an impossible undo");
        if (change != 0) make_pair(static_cast<int>(id), static_cast<unsigned short>(i), change, SEM_UNDO, what);
      }
    }
  }
}

void touch_semaphores(const IpcImages& images, pid_t pid) {
  for (const ImageSemaphores& set : images.sets) {
    const uint32_t id = set.entry.desc().id();
    const ext::IpcObject& extra = images.extra_of(IpcKind::semaphores, id);
    const int semaphores = std::min(extra.pids_size(), static_cast<int>(set.values.size()));
    for (int i = 0; i < semaphores; ++i)
      if (extra.pids(i) == static_cast<uint32_t>(pid))
        make_pair(static_cast<int>(id), static_cast<unsigned short>(i), 1, 0,
                  "System V semaphore set " + std::to_string(id));
  }
}

void IpcRestorer::finish() const {
  for (const int id : destroyed_) check(::shmctl(id, IPC_RMID, nullptr), "mark as removed", "a System V segment");
  if (last_) write_ipc_settings(*last_, trusted_);
}

}  // namespace migrate

// Journals: one file a session in the state folder, which tells any later process of ours how the session stands.
//
// SESSION.SIDE.journal is JSON, replaced as a whole (written, synced, renamed, folder synced). The rename is what
// counts: from then on all processes of this machine see the new content, and in their memory it stands, too.
// SESSION.SIDE.lock is locked by the one process that may change it (its *owner*); tree-PID-START.lock keeps a tree
// from being moved twice at a time. Locks are POSIX record locks: they end with the process and, unlike flock(2), are
// not inherited by the children that a guardian forks. A process must therefore open a lock file only once.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/held_lock.h"
#include "core/base/types.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/ipc/sysv_objects.h"
#include "migrate/session/journal/feed_settings.h"
#include "migrate/session/journal/states.h"
#include "pageserver/page_stream.h"

namespace migrate {

SessionId new_session_id();
std::string to_hex(const SessionId& id);
/// Exactly 32 lower-case hexadecimal digits.
std::optional<SessionId> session_from_hex(std::string_view text);
/// Name of the freezer cgroup of a session: the same on both sides would collide on one machine.
std::string cgroup_name(const SessionId& id, Role role);
/// What the names of the cgroups of its lazy host's processes begin with; their seat follows.
std::string lazy_cgroup_mark(const SessionId& id);

/// /proc/sys/kernel/random/boot_id, or MIGRATE_FAKE_BOOT_ID (two hosts on one machine, tests of reboots).
std::string boot_id();

/// A task that a pid alone does not identify. Start times are in clock ticks of the initial time namespace.
struct TaskId {
  pid_t pid = 0;
  uint64_t start_time = 0;
  auto operator<=>(const TaskId&) const = default;
  /// The same task, maybe seen from different time namespaces: where their offset is no whole number of ticks, a start
  /// time is one tick more or less. No pid is used again so soon.
  bool is(const TaskId& other) const;
  /// nullopt: no such task.
  static std::optional<TaskId> of(pid_t pid);
  /// Still there, and not a zombie.
  bool lives() const;
};

struct JournalEntry {
  SessionId id{};
  Role role = Role::source;
  State state = State::preparing;
  uint64_t epoch = 1;       ///< raised by whoever takes the session over
  uint64_t peer_epoch = 0;  ///< newest epoch heard from the other side (destination)
  std::string boot_id;
  std::string label;          ///< "pid:42 (redis-server)"
  std::string peer;           ///< where the other side is: HOST:PORT as typed (source), its address (destination)
  std::string tls_name;       ///< source: that the other side's certificate must carry; empty: its host as typed
  std::string peer_name;      ///< destination: the name in the source's certificate; nobody else may settle the session
  std::vector<TaskId> tasks;  ///< the root first
  std::optional<TaskId> init;  ///< of a received tree's namespaces
  std::optional<FreezerCgroup::Record> cgroup;
  std::vector<std::string> socket_folders;  ///< destination: where the copy's Unix sockets wait under hidden names
  std::string hidden_mark() const;          ///< what those begin with
  bool lazy = false;                        ///< pages may come after GATE_OPEN, until WHOLE
  std::vector<std::string> lazy_cgroups;    ///< destination: folders of its lazy host's processes, seat by seat
  std::vector<IpcObject> left_behind;       ///< source: Dump::left_behind()
  std::vector<HeldLock> locks;              ///< source: that were given up for the move, or are about to be
  std::string lost_locks;                   ///< source: those that could not be had again, in sentences
  std::optional<FeedSettings> feed;         ///< source: how they go
  std::string given_up;                     ///< tasks of which pages were lost (PagesEnd)
  bool source_runs = false;  ///< destination: the copy was let run, and so was the source's tree, by the operator
  bool peer_settled = true;  ///< source: the destination knows about the abort, or never knew the session
  std::string reason;        ///< of the last step, for people
  int64_t created_ns = 0, updated_ns = 0;  ///< CLOCK_REALTIME

  std::string to_json() const;
  /// Throws Corrupt.
  static JournalEntry from_json(const std::string& text, const std::string& name);
};

/// One session's journal, owned: this process holds its lock.
class Journal {
 public:
  const JournalEntry& entry() const { return entry_; }
  SessionId id() const { return entry_.id; }
  State state() const { return entry_.state; }

  /// Takes the step, or throws with the old state still in force: Error if the disk fails, Refusal if the step is not
  /// legal on this authority. A step that every process of this machine can read is taken, whatever the disk says
  /// afterwards: see durable().
  void step(State to, Authority authority, std::string reason = {});
  /// False: the last change stands, but could not be synced, so that a power failure may take it back. Before READY and
  /// COMMITTED the move is given up for that, see demand_durable(); later only forward is right.
  bool durable() const { return durable_; }
  /// Room on the disk for the next change, so that it cannot fail for want of it. Throws Error.
  void reserve();
  /// Throws Error unless the last change is durable.
  void demand_durable() const;
  /// Changes facts, not the state; likewise.
  template <class Change>
  void update(Change change) {
    JournalEntry next = entry_;
    change(next);
    next.state = entry_.state;
    store(next);
  }
  /// A step and facts in one write.
  template <class Change>
  void step_with(State to, Authority authority, std::string reason, Change change) {
    JournalEntry next = entry_;
    change(next);
    next.state = entry_.state;
    step_from(std::move(next), to, authority, std::move(reason));
  }

 private:
  friend class JournalStore;
  Journal(Fd dir, Fd lock, Fd tree_lock, JournalEntry entry)
      : dir_(std::move(dir)), lock_(std::move(lock)), tree_lock_(std::move(tree_lock)), entry_(std::move(entry)) {}
  void step_from(JournalEntry next, State to, Authority authority, std::string reason);
  void store(JournalEntry& next);

  Fd dir_;
  Fd lock_;
  Fd tree_lock_;
  JournalEntry entry_;
  bool durable_ = true;
};

/// The state folder.
class JournalStore {
 public:
  /// Opens (or makes, 0700) the folder.
  explicit JournalStore(const std::string& path);

  /// Starts a session, durably, or throws with no trace of it. Refusal if the id was ever used here, or if its root
  /// task is being moved already. `entry.tasks` holds the root on the source.
  Journal create(JournalEntry entry);
  /// Takes a session over and raises its epoch; nullopt: another process owns it. `raise` false: only to settle what
  /// is final already, or to write down what anybody finds who looks (how a lazy session's pages ended).
  std::optional<Journal> take_over(const SessionId& id, Role role, bool raise = true);
  /// As it stands, whoever owns it; nullopt: never heard of.
  std::optional<JournalEntry> peek(const SessionId& id, Role role) const;
  /// All journals, oldest first. Damaged ones are left out and named in `damaged`.
  std::vector<JournalEntry> list(std::vector<std::string>* damaged = nullptr) const;
  /// The process that owns a session, 0 if none does.
  /// Never for a session that this process owns: that would drop its lock.
  pid_t owner(const SessionId& id, Role role) const;
  /// The process that moves the tree with that root from here, 0 if none does. Never for one that this process moves.
  pid_t mover(const TaskId& root) const;
  /// For an abort that cannot be written, because the disk is full: the journal gets a name that says ABORTED, which
  /// takes no room (a source's; its epoch counts as one more). Should that fail too, the session is forgotten: unknown
  /// is safe, FROZEN would not be. False then.
  bool abort_by_name(const SessionId& id) noexcept;
  /// The other side knows how the session ended here (a source's). One that only its name says, for want of room, is
  /// forgotten then: nothing is left to be told. No effect while another process owns it.
  void note_peer_settled(const SessionId& id);
  const std::string& path() const { return path_; }
  /// Where the destination's guardian of a session listens for later agents: a path short enough for any state folder,
  /// valid in this process only.
  std::string socket_path(const SessionId& id) const { return fd_link(dir_.get()) + "/" + to_hex(id) + ".sock"; }
  /// The same of its lazy host.
  std::string lazy_path(const SessionId& id) const { return fd_link(dir_.get()) + "/" + to_hex(id) + ".lazy"; }

 private:
  void forget(const SessionId& id, Role role) noexcept;

  std::string path_;
  Fd dir_;
};

}  // namespace migrate

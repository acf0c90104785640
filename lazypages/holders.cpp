#include "lazypages/holders.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <span>

#include "core/base/error.h"
#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"

namespace migrate {
namespace {

constexpr int kRetryMs = 100;       ///< when a member cannot be made
constexpr int kLookAgainMs = 1000;  ///< two that are killed in a row may leave it untold that somebody has changed

bool ended(int pidfd) {
  pollfd p{pidfd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1 && (p.revents & POLLIN) != 0;
}

/// clone3(2) as fork(2), with one table of descriptors. 0 in the child, negative if there is none. The C library is not
/// told: that is enough for who has no threads. Where the kernel says where the library keeps the thread's number, that
/// is right too.
long copy_process(HolderTable::Making& making, uint64_t pidfd) {
  uint64_t thread_number = 0;
  const bool known = ::prctl(PR_GET_TID_ADDRESS, &thread_number) == 0 && thread_number != 0;
  clone_args args{};
  args.flags = CLONE_FILES | CLONE_PARENT_SETTID | pidfd;
  if (known) args.flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  args.pidfd = reinterpret_cast<uint64_t>(&making.pidfd);
  args.parent_tid = reinterpret_cast<uint64_t>(&making.pid);
  args.child_tid = thread_number;
  return ::syscall(SYS_clone3, &args, sizeof args);
}

}  // namespace

void reap_members() noexcept {
  siginfo_t info{};
  while (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | __WCLONE) == 0 && info.si_pid != 0) info = {};
}

/// Only its owner changes members, and opens or closes descriptors in a holder. Who is killed with it loses it.
class Holders::Claim {
 public:
  explicit Claim(const Holders& self) : self_(self) {
    for (;;) {
      uint64_t owner = 0;
      if (self_.table_.claim.compare_exchange_strong(owner, self_.id_)) return;
      if (self_.is_gone(owner) && self_.table_.claim.compare_exchange_strong(owner, self_.id_)) return;
      ::usleep(200);
    }
  }
  /// In a copy that was made meanwhile, which is another member, nothing.
  ~Claim() {
    uint64_t mine = self_.id_;
    self_.table_.claim.compare_exchange_strong(mine, 0);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

 private:
  const Holders& self_;
};

Holders::Holders(HolderTable& table, Hooks hooks) : table_(table), hooks_(std::move(hooks)) {}

bool HolderTable::dead(unsigned place) const { return members[place].id == 0 || ended(members[place].pidfd); }

bool HolderTable::all_placed() const {
  return std::ranges::all_of(std::span(members).subspan(1),
                             [](const Member& m) { return m.id != 0 && m.placed == m.id; });
}

/// Certain only if true. A number is looked at again after the descriptor was: it was still this member's.
bool Holders::is_gone(uint64_t id) const {
  for (const HolderTable::Member& member : table_.members)
    if (member.id == id && ended(member.pidfd) && member.id == id) return true;
  const HolderTable::Making& making = table_.making;
  // In a full table it has a number only, until settle().
  const int pidfd = making.pidfd;
  const pid_t pid = making.pid;
  const bool gone = pidfd >= 0 ? ended(pidfd) : pid != 0 && ::kill(pid, 0) != 0 && errno == ESRCH;
  return making.id == id && gone && making.id == id;
}

void Holders::open_descriptors() {
  const auto self = open_pidfd(::getpid());
  if (!self) throw Error("open", "a pidfd of this process", ESRCH);
  for (HolderTable::Member& member : table_.members) {
    member.pidfd = self->dup().release();
    member.bell = check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "make an eventfd for", "holders");
  }
  for (auto& spare : table_.spares) spare = self->dup().release();
}

/// Nothing on the stack may own a descriptor where members are made: each would close it.
void Holders::start() {
  id_ = ++table_.last_id;
  open_descriptors();
  table_.members[HolderTable::kDaemon].id = id_;
  try {
    refill();
  } catch (const Error&) {
    table_.all_leave = 1;
    ring();
    throw;
  }
}

void Holders::refill() {
  const Claim claim(*this);
  settle();
  for (unsigned place = 1; place < table_.members.size(); ++place) {
    if (!table_.dead(place)) continue;
    if (make(place)) return;
    if (table_.making.id == 0) throw Error("make", "a holder of descriptors", errno);
    settle();
  }
}

/// For who is to have that place, none of those that live has it: two of three are taken at most.
uint32_t Holders::free_seat(unsigned place) const {
  for (uint32_t seat = 0;; ++seat) {
    bool taken = seat == seat_;
    for (unsigned other = 0; other < table_.members.size(); ++other)
      taken = taken || (other != place && table_.members[other].seat == seat && !table_.dead(other));
    if (!taken) return seat;
  }
}

/// True in the new member. It takes its place by settle().
bool Holders::make(unsigned place) {
  HolderTable::Making& making = table_.making;
  if (making.id != 0) return false;
  const uint64_t id = ++table_.last_id;
  making.pid = 0;
  making.pidfd = -1;
  making.place = place;
  const uint32_t seat = free_seat(place);
  making.seat = seat;
  making.id.store(id, std::memory_order_release);
  long child = copy_process(making, CLONE_PIDFD);
  if (child < 0 && errno == EMFILE) child = copy_process(making, 0);
  if (child == 0) {
    id_ = id;
    place_ = place;
    seat_ = seat;
    return true;
  }
  if (child < 0) {
    making.id = 0;
  } else {
    step("holder-cloned");
  }
  return false;
}

/// Of a new member, in a table that is full. The gap between the two calls is short enough: the daemon's forks may want
/// what is closed. -1: not now, or it is gone (ESRCH).
int Holders::open_member(pid_t pid) {
  auto pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  for (auto& spare : table_.spares) {
    if (pidfd >= 0 || errno != EMFILE) break;
    if (spare < 0) continue;
    ::close(spare.exchange(-1));
    pidfd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  }
  return pidfd;
}

/// Gives a new member its place, also if its maker was killed. If it cannot yet, it is tried again.
void Holders::settle() {
  HolderTable::Making& making = table_.making;
  if (making.id == 0) return;
  const bool full = making.pid != 0 && making.pidfd < 0;
  if (full) {
    making.pidfd = open_member(making.pid);
    if (making.pidfd < 0 && errno != ESRCH) return;
  }
  const int pidfd = making.pidfd;
  const bool exists = making.pid != 0 && pidfd >= 0;
  if (exists) {
    HolderTable::Member& member = table_.members[making.place];
    put_over(making.place, pidfd);
    member.seat = making.seat;
    step("holder-over-old");
    member.id.store(making.id, std::memory_order_release);
    step("holder-in-place");
  }
  making.id.store(0, std::memory_order_release);
  if (!exists) return;
  // What was spent is there again; no more, since a daemon that begins now needs the room that the last one left.
  const auto spent = std::ranges::find_if(table_.spares, [](const auto& spare) { return spare < 0; });
  if (full && spent != table_.spares.end()) {
    *spent = pidfd;
  } else {
    ::close(pidfd);
  }
}

/// Followed by another holder at its place, which returns from here too.
void Holders::take_over() {
  const unsigned old = place_;
  if (make(old)) return;
  const bool followed = table_.making.id != 0 && table_.making.place == old;
  step("follower-made");
  put_over(HolderTable::kDaemon, table_.members[old].pidfd);
  table_.members[HolderTable::kDaemon].seat = seat_;
  step("over-old-daemon");
  table_.members[HolderTable::kDaemon].id.store(id_, std::memory_order_release);
  step("in-daemon-place");
  place_ = HolderTable::kDaemon;
  settle();
  if (!followed) table_.members[old].id = 0;  // the other holder tries again
  ++table_.generation;
  hooks_.placed(place_, seat_);
  hooks_.taken_over();
  step("taken-over");
}

/// poll(2) waits for files, but looks at numbers again when it is woken: who slept until its number had got another
/// file would sleep on, waiting for the old one. So it is told. If we are killed before, it was waiting for us as well.
void Holders::put_over(unsigned place, int pidfd) const {
  ::dup3(pidfd, table_.members[place].pidfd, O_CLOEXEC);
  ring();
}

void Holders::ring() const {
  for (unsigned place = 0; place < table_.members.size(); ++place)
    if (place != place_) ::eventfd_write(table_.members[place].bell, 1);
}

void Holders::wait() const {
  std::array<pollfd, 3> waited{pollfd{table_.members[place_].bell, POLLIN, 0}};
  size_t n = 1;
  int timeout = table_.making.id == 0 ? kLookAgainMs : kRetryMs;
  for (unsigned place = 0; place < table_.members.size(); ++place) {
    if (place == place_) continue;
    if (table_.members[place].id == 0) {
      timeout = kRetryMs;
    } else {
      waited[n++] = {table_.members[place].pidfd, POLLIN, 0};
    }
  }
  ::poll(waited.data(), n, timeout);
  eventfd_t rung = 0;
  ::eventfd_read(waited[0].fd, &rung);
}

void Holders::hold() {
  // Copies that are made here are other members, and go to their places first.
  for (uint64_t placed = 0; !is_daemon();) {
    if (placed != id_) {
      hooks_.placed(place_, seat_);
      table_.members[place_].placed = placed = id_;
    }
    {
      const Claim claim(*this);
      step("claimed");
      settle();
      reap_members();
      if (table_.all_leave != 0) ::_exit(0);
      fill_places();
    }
    if (!is_daemon() && placed == id_) wait();
  }
}

/// With the claim; returns without it in a copy that was made.
void Holders::fill_places() {
  for (unsigned place = 1; place < table_.members.size(); ++place) {
    if (place == place_ || !table_.dead(place)) continue;
    if (make(place)) return;
    if (table_.making.id == 0) table_.members[place].id = 0;  // tried again after a while
    settle();
  }
  if (table_.dead(HolderTable::kDaemon)) take_over();
}

void Holders::leave() {
  table_.all_leave = 1;
  ring();
  for (;;) {
    {
      const Claim claim(*this);
      settle();
      const bool alone = table_.alone();
      reap_members();
      if (alone) return;
    }
    std::array<pollfd, 2> waited{pollfd{table_.members[1].pidfd, POLLIN, 0},
                                 pollfd{table_.members[2].pidfd, POLLIN, 0}};
    for (pollfd& p : waited) ::poll(&p, 1, kRetryMs);
  }
}

}  // namespace migrate

#include "core/files/socket_makers.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstdlib>

namespace migrate {
namespace {

constexpr uint32_t kAsIs = UINT32_MAX;

std::vector<uint32_t> own_groups() {
  std::vector<uint32_t> groups(static_cast<size_t>(check(::getgroups(0, nullptr), "read", "our own groups")));
  check(::getgroups(static_cast<int>(groups.size()), groups.data()), "read", "our own groups");
  return groups;
}

/// Effective ids and groups of the calling thread. Real and saved ids, by which others may signal or trace it, stay,
/// and lead back.
class EffectiveIds {
 public:
  explicit EffectiveIds(const PeerCredentials& who)
      : own_{0, ::geteuid(), ::getegid(), own_groups()}, dumpable_(::prctl(PR_GET_DUMPABLE)) {
    ::prctl(PR_GET_PDEATHSIG, &death_signal_);
    PeerCredentials wanted = who;
    wanted.pid = 0;
    if (wanted == own_) return;
    changed_ = true;
    if (set(who)) return;
    const int reason = errno;
    be_self();
    throw Error("take on the ids of", "user " + std::to_string(who.uid), reason);
  }
  ~EffectiveIds() {
    if (changed_) be_self();
  }
  EffectiveIds(const EffectiveIds&) = delete;
  EffectiveIds& operator=(const EffectiveIds&) = delete;

 private:
  // The C library's would change all threads. Groups and gid first: they need the capabilities that root has.
  static bool set(const PeerCredentials& who) {
    return ::syscall(SYS_setgroups, who.groups.size(), who.groups.data()) == 0 &&
           ::syscall(SYS_setresgid, kAsIs, who.gid, kAsIs) == 0 && ::syscall(SYS_setresuid, kAsIs, who.uid, kAsIs) == 0;
  }
  void be_self() const noexcept {
    // The user first: capabilities come back with it.
    if (::syscall(SYS_setresuid, kAsIs, own_.uid, kAsIs) != 0 || !set(own_)) ::abort();
    // Forgotten by a change of credentials (commit_creds()).
    if (death_signal_ != 0) ::prctl(PR_SET_PDEATHSIG, death_signal_, 0, 0, 0);
    if (dumpable_ == 1) ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
  }

  PeerCredentials own_;
  int death_signal_ = 0, dumpable_;
  bool changed_ = false;
};

void connect_step(const SocketStep& step) {
  sockaddr_un name = step.name;
  socklen_t length = std::min<socklen_t>(step.length, sizeof name);
  if (step.file >= 0) {
    const std::string path = fd_link(step.file);
    name = {};
    name.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), name.sun_path);
    length = sizeof name;
  }
  check(::connect(step.socket, reinterpret_cast<const sockaddr*>(&name), length), "connect", "a Unix socket");
}

}  // namespace

std::vector<Fd> make_sockets(const PeerCredentials& who, std::span<const SocketStep> steps) {
  std::vector<Fd> made;
  const EffectiveIds as(who);
  for (const SocketStep& step : steps) {
    if (step.kind == SocketStep::Kind::pair) {
      int ends[2];
      check(::socketpair(AF_UNIX, step.type | SOCK_CLOEXEC, 0, ends), "make", "a pair of Unix sockets");
      made.emplace_back(ends[0]);
      made.emplace_back(ends[1]);
    } else if (step.kind == SocketStep::Kind::listen) {
      check(::listen(step.socket, step.backlog), "listen on", "a Unix socket");
    } else {
      connect_step(step);
    }
  }
  return made;
}

void SocketBatch::add(const PeerCredentials& who, const SocketStep& step, Done done) {
  Work& work = work_[who];
  work.steps.push_back(step);
  work.done.push_back(std::move(done));
}

void SocketBatch::run() {
  const auto all = std::move(work_);
  work_.clear();
  for (const auto& [who, work] : all)
    for (size_t at = 0; at < work.steps.size(); at += kMaxSocketSteps) {
      const auto steps = std::span(work.steps).subspan(at, std::min(kMaxSocketSteps, work.steps.size() - at));
      std::vector<Fd> made = maker_(who, steps);
      size_t next = 0;
      for (size_t i = 0; i < steps.size(); ++i) {
        Fd first, second;
        if (steps[i].kind == SocketStep::Kind::pair) {
          if (next + 2 > made.size()) throw Error("make", "pairs of Unix sockets", EBADMSG);
          first = std::move(made[next++]);
          second = std::move(made[next++]);
        }
        if (const Done& done = work.done[at + i]) done(std::move(first), std::move(second));
      }
    }
}

}  // namespace migrate

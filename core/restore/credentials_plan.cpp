#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>

#include "core/base/fd.h"
#include "core/base/limit_names.h"
#include "core/base/proc_values.h"
#include "core/restore/plans.h"
#include "core/restore/restorable.h"

namespace migrate {
namespace {

using restorer::Tag;

constexpr uint32_t kKeepAll = SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS;

/// A capability set as two words, as capset(2) and the images have it.
uint64_t capability_set(const google::protobuf::RepeatedField<uint32_t>& words) {
  uint64_t set = 0;
  for (int i = 0; i < std::min(words.size(), 2); ++i) set |= uint64_t{words[i]} << (32 * i);
  return set;
}

void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable, Region& region, OpList& list) {
  struct {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
  } caps;
  for (int i = 0; i < 2; ++i) {
    caps.data[i].effective = static_cast<uint32_t>(effective >> (32 * i));
    caps.data[i].permitted = static_cast<uint32_t>(permitted >> (32 * i));
    caps.data[i].inheritable = static_cast<uint32_t>(inheritable >> (32 * i));
  }
  const uint64_t at = region.put_value(caps);
  list.call(Tag::capabilities, SYS_capset, {at, at + offsetof(decltype(caps), data)});
}

void plan_ids(const img::creds_entry& c, Region& region, OpList& list) {
  const std::vector<uint32_t> groups(c.groups().begin(), c.groups().end());
  list.call(Tag::credentials, SYS_setgroups, {groups.size(), region.put(std::as_bytes(std::span(groups)))});
  list.call(Tag::credentials, SYS_setresgid, {c.gid(), c.egid(), c.sgid()});
  list.call(Tag::credentials, SYS_setfsgid, {c.fsgid()});
  list.call(Tag::credentials, SYS_setresuid, {c.uid(), c.euid(), c.suid()});
  list.call(Tag::credentials, SYS_setfsuid, {c.fsuid()});
}

}  // namespace

void check_credentials(const img::core_entry& core, const std::string& image) {
  if (!core.thread_core().has_creds()) throw Corrupt(image, "it does not say whose thread it is");
  const img::creds_entry& c = core.thread_core().creds();
  // setresuid(2) takes it for "as it is", which is root's.
  constexpr uint32_t kNobody = UINT32_MAX;
  for (const uint32_t id : {c.uid(), c.euid(), c.suid(), c.fsuid(), c.gid(), c.egid(), c.sgid(), c.fsgid()})
    if (id == kNobody) throw Corrupt(image, "a user or group id is not possible");
  if (std::find(c.groups().begin(), c.groups().end(), kNobody) != c.groups().end())
    throw Corrupt(image, "a group id is not possible");
}

/// Order: ids while the fix-up of capabilities is off, bounds and securebits while CAP_SETPCAP is still there, the sets
/// last. Ambient capabilities need permitted and inheritable ones.
void plan_credentials(const TaskImage& task, size_t thread, Region& region, OpList& list) {
  const img::creds_entry& c = task.cores[thread].thread_core().creds();
  const uint64_t bounding = capability_set(c.cap_bnd()), permitted = capability_set(c.cap_prm());
  const uint64_t effective = capability_set(c.cap_eff()), inheritable = capability_set(c.cap_inh());
  const uint64_t ambient = capability_set(c.cap_amb());
  list.call(Tag::credentials, SYS_prctl, {PR_SET_SECUREBITS, kKeepAll, 0, 0, 0});
  list.call(Tag::capabilities, SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0});
  plan_ids(c, region, list);
  const uint64_t setpcap = uint64_t{1} << CAP_SETPCAP;
  // setresuid from root clears the effective set only without NO_SETUID_FIXUP; nothing to raise again here.
  for (uint64_t cap = 0; cap < 64; ++cap) {
    if ((bounding >> cap & 1) != 0 || ::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) != 1) continue;
    list.call(Tag::capabilities, SYS_prctl, {PR_CAPBSET_DROP, cap, 0, 0, 0});
  }
  set_capabilities(effective | setpcap, permitted | setpcap, inheritable, region, list);
  for (uint64_t cap = 0; cap < 64; ++cap)
    if ((ambient >> cap & 1) != 0)
      list.call(Tag::capabilities, SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0});
  list.call(Tag::credentials, SYS_prctl, {PR_SET_SECUREBITS, c.secbits(), 0, 0, 0});
  set_capabilities(effective, permitted, inheritable, region, list);
  if (c.no_new_privs() != 0) list.call(Tag::process_flags, SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
}

namespace {

void check_oom_score(const TaskImage& task, const std::string& who) {
  const int wanted = task.core().tc().oom_score_adj();
  if (!may_give_oom_score(wanted))
    throw Refusal(who + " has oom_score_adj " + std::to_string(wanted) + ", lower than we may give it",
                  "run the restore with CAP_SYS_RESOURCE");
}

/// Each timer takes the place of a queued signal too.
void check_signal_room(const TaskImage& task) {
  const img::task_core_entry& tc = task.core().tc();
  size_t queued = static_cast<size_t>(tc.signals_s().signals_size() + tc.timers().posix_size());
  for (const img::core_entry& core : task.cores)
    queued += static_cast<size_t>(core.thread_core().signals_p().signals_size());
  rlimit own{};
  check(::getrlimit(RLIMIT_SIGPENDING, &own), "read", "our own limits");
  const uint64_t room = std::max<uint64_t>(own.rlim_max, tc.rlimits().rlimits(RLIMIT_SIGPENDING).max());
  if (queued > room)
    throw Refusal("task " + std::to_string(task.pid) + " has " + std::to_string(queued) +
                      " queued signals and timers, more than our own limit of " + std::to_string(room),
                  "raise that of this process (ulimit -Hi)");
}

}  // namespace

/// How low one may go is not told, and not the present value: it is tried.
bool may_give_oom_score(int wanted) {
  const std::string own = read_file_at(AT_FDCWD, "/proc/self/oom_score_adj");
  if (wanted >= parse_number<int32_t>(own, "/proc/self/oom_score_adj") ||
      ::prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) == 1)
    return true;
  const Fd file = open_path("/proc/self/oom_score_adj", O_WRONLY);
  const std::string text = std::to_string(wanted);
  if (::write(file.get(), text.data(), text.size()) < 0) return false;
  write_full(file.get(), as_bytes_of(own), "our own oom_score_adj");
  return true;
}

void check_privileges(const TaskImage& task) {
  const std::string who = "task " + std::to_string(task.pid);
  uint32_t resource = 0;
  for (const img::rlimit_entry& e : task.core().tc().rlimits().rlimits()) {
    rlimit own{};
    check(::prlimit(0, static_cast<__rlimit_resource>(resource), nullptr, &own), "read", "our own limits");
    if (e.max() > own.rlim_max && ::prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) != 1) {
      throw Refusal(who + " has a hard limit (" + limit_name(resource) + ") above ours",
                    "raise that limit of the process that restores it to " + std::to_string(e.max()));
    }
    ++resource;
  }
  check_oom_score(task, who);
  check_signal_room(task);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  check(::syscall(SYS_capget, &header, data), "read", "our own capabilities");
  const uint64_t own = data[0].permitted | uint64_t{data[1].permitted} << 32;
  for (size_t i = 0; i < task.cores.size(); ++i) {
    const uint64_t wanted = capability_set(task.cores[i].thread_core().creds().cap_prm());
    if ((wanted & ~own) != 0) {
      throw Refusal("thread " + std::to_string(task.tids[i]) + " has capability number " +
                        std::to_string(__builtin_ctzll(wanted & ~own)) + ", which the restoring process lacks",
                    "run `migrate restore` or `migrate receive` with that capability");
    }
  }
}

}  // namespace migrate

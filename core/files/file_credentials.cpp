#include "core/files/file_credentials.h"

#include <limits.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/base/error.h"
#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "images/creds.pb.h"

namespace migrate {
namespace {

struct CapabilitySets {
  uint64_t effective = 0, permitted = 0, inheritable = 0;
};

CapabilitySets own_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  check(::syscall(SYS_capget, &header, data), "read", "our own capabilities");
  CapabilitySets sets;
  for (int i = 0; i < 2; ++i) {
    sets.effective |= uint64_t{data[i].effective} << (32 * i);
    sets.permitted |= uint64_t{data[i].permitted} << (32 * i);
    sets.inheritable |= uint64_t{data[i].inheritable} << (32 * i);
  }
  return sets;
}

// The C library's set all threads; these are the calling thread's alone. They report no failure, but what was before.
uint32_t set_fsuid(uint32_t uid) { return static_cast<uint32_t>(::syscall(SYS_setfsuid, uid)); }
uint32_t set_fsgid(uint32_t gid) { return static_cast<uint32_t>(::syscall(SYS_setfsgid, gid)); }
constexpr uint32_t kNobody = ~0U;  ///< no valid id: changes nothing

}  // namespace

bool FileCredentials::in_group(uint32_t group) const {
  return group == gid || std::binary_search(groups.begin(), groups.end(), group);
}

bool FileCredentials::may_give(uint32_t owner, uint32_t group) const {
  return has(CAP_CHOWN) || (owner == uid && in_group(group));
}

bool FileCredentials::may_set_id(uint32_t mode, uint32_t owner, uint32_t group) const {
  // chown(2) takes set-id bits away, so that chmod(2) comes last, on a file that is another's by then.
  const bool as_owner = owner == uid || (has(CAP_CHOWN) && has(CAP_FOWNER));
  const bool as_group = in_group(group) || (has(CAP_CHOWN) && has(CAP_FSETID));
  if ((mode & S_ISUID) != 0 && !as_owner) return false;
  return (mode & S_ISGID) == 0 || (as_owner && as_group);
}

void sort_once(std::vector<uint32_t>& groups) {
  std::sort(groups.begin(), groups.end());
  groups.erase(std::unique(groups.begin(), groups.end()), groups.end());
}

void add_holder(Holders& holders, const FileCredentials& who) {
  if (std::find(holders.begin(), holders.end(), who) == holders.end()) holders.push_back(who);
}

void least_rights_first(Holders& holders) {
  std::stable_sort(holders.begin(), holders.end(), [](const FileCredentials& a, const FileCredentials& b) {
    return std::pair(a.uid == 0, a.capabilities) < std::pair(b.uid == 0, b.capabilities);
  });
}

FileCredentials credentials_in_status(std::string_view text) {
  // Of each thread of a tree: nothing but four lines is looked at.
  const auto line = [&](std::string_view key) {
    const size_t at = text.find(key);
    if (at == text.npos) throw Corrupt("/proc/PID/status", std::string(key.substr(1)) + " is missing");
    return text.substr(at + key.size(), text.find('\n', at + 1) - at - key.size());
  };
  const auto numbers = [&](std::string_view key) {
    return parse_numbers<uint32_t>(line(key), "/proc/PID/status: ids");
  };
  constexpr size_t kFileSystem = 3;  // real, effective, saved, file system
  const std::vector<uint32_t> uids = numbers("\nUid:"), gids = numbers("\nGid:");
  if (uids.size() <= kFileSystem || gids.size() <= kFileSystem) throw Corrupt("/proc/PID/status", "ids are missing");
  FileCredentials c{uids[kFileSystem], gids[kFileSystem], numbers("\nGroups:"),
                    parse_number(line("\nCapEff:"), "/proc/PID/status: CapEff", 16)};
  sort_once(c.groups);
  return c;
}

FileCredentials credentials_of(const img::creds_entry& creds) {
  if (creds.groups_size() > NGROUPS_MAX) throw Corrupt("the credentials of a thread", "it is in too many groups");
  FileCredentials c{creds.fsuid(), creds.fsgid(), {creds.groups().begin(), creds.groups().end()}, 0};
  sort_once(c.groups);
  for (int i = 0; i < std::min(creds.cap_eff_size(), 2); ++i) c.capabilities |= uint64_t{creds.cap_eff(i)} << (32 * i);
  return c;
}

FileCredentials credentials_of(const ProcDir& task) { return credentials_in_status(task.read("status")); }

FileCredentials own_credentials() {
  FileCredentials c;
  c.uid = set_fsuid(kNobody);
  c.gid = set_fsgid(kNobody);
  c.groups.resize(static_cast<size_t>(check(::getgroups(0, nullptr), "read", "our own groups")));
  check(::getgroups(static_cast<int>(c.groups.size()), c.groups.data()), "read", "our own groups");
  sort_once(c.groups);
  c.capabilities = own_capabilities().effective;
  return c;
}

ActingAs::ActingAs() : own_(own_credentials()) {
  const CapabilitySets sets = own_capabilities();
  permitted_ = sets.permitted;
  inheritable_ = sets.inheritable;
}

ActingAs::~ActingAs() { be_self(); }

bool ActingAs::set_effective(uint64_t capabilities) const {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  for (int i = 0; i < 2; ++i) {
    data[i].effective = static_cast<uint32_t>(capabilities >> (32 * i));
    data[i].permitted = static_cast<uint32_t>(permitted_ >> (32 * i));
    data[i].inheritable = static_cast<uint32_t>(inheritable_ >> (32 * i));
  }
  return ::syscall(SYS_capset, &header, data) == 0;
}

/// A change of file credentials makes the process undumpable and forgets the parent-death signal (commit_creds()). What
/// both are is asked each time: a process that has made itself independent of its parent must not die with it after
/// all.
void ActingAs::note_flags() {
  ::prctl(PR_GET_PDEATHSIG, &death_signal_);
  if (!other_) dumpable_ = ::prctl(PR_GET_DUMPABLE);
}

void ActingAs::keep_death_signal() const {
  if (death_signal_ != 0) ::prctl(PR_SET_PDEATHSIG, death_signal_, 0, 0, 0);
}

bool ActingAs::set(const FileCredentials& who, uint64_t capabilities) const {
  // The effective set last: setfsuid(2) takes capabilities from it and gives them back.
  if (::syscall(SYS_setgroups, who.groups.size(), who.groups.data()) != 0) return false;
  set_fsgid(who.gid);
  set_fsuid(who.uid);
  return set_fsuid(kNobody) == who.uid && set_fsgid(kNobody) == who.gid && set_effective(capabilities);
}

void ActingAs::become(const FileCredentials& who) {
  if (who == now()) return;
  const uint64_t capabilities = who.capabilities & own_.capabilities;
  if (who.uid == own_.uid && who.gid == own_.gid && who.groups == own_.groups && capabilities == own_.capabilities)
    return be_self();
  note_flags();
  if (other_ && !set_effective(own_.capabilities)) ::abort();
  other_ = who;
  const bool done = set(who, capabilities);
  const int failure = errno;
  keep_death_signal();
  if (done) return;
  be_self();
  throw Error("take on the rights of", "user " + std::to_string(who.uid), failure == 0 ? EPERM : failure);
}

void ActingAs::be_self() noexcept {
  if (!other_) return;
  note_flags();
  const bool back = set_effective(own_.capabilities) && set(own_, own_.capabilities);
  if (!back) ::abort();
  other_.reset();
  keep_death_signal();
  if (dumpable_ == 1) ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

}  // namespace migrate

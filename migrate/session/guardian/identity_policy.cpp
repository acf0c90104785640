#include "migrate/session/guardian/identity_policy.h"

#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "core/restore/tree_order.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"
#include "migrate/session/guardian/privileges.h"

namespace migrate {
namespace {

bool among(const std::vector<uint32_t>& ids, uint32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

void check_ids(const IdentityPolicy& policy, const img::creds_entry& creds, const std::string& who) {
  for (const uint32_t uid : {creds.uid(), creds.euid(), creds.suid(), creds.fsuid()}) {
    if (policy.takes_uid(uid)) continue;
    throw Refusal(who + " has uid " + std::to_string(uid) + ", which the receiver does not allow",
                  "receive with --allow-uid " + std::to_string(uid) + " if it may run here");
  }
  std::vector<uint32_t> gids{creds.gid(), creds.egid(), creds.sgid(), creds.fsgid()};
  gids.insert(gids.end(), creds.groups().begin(), creds.groups().end());
  for (const uint32_t gid : gids) {
    if (policy.takes_gid(gid)) continue;
    throw Refusal(who + " is in group " + std::to_string(gid) + ", which the receiver does not allow",
                  "receive with --allow-gid " + std::to_string(gid) + " if it may be in it here");
  }
}

void enforce(const IdentityPolicy& policy, const std::string& who, img::core_entry& core) {
  if (!core.thread_core().has_creds())
    throw Refusal(who + " does not say which user it is", "take it from a sender that you trust");
  img::creds_entry& creds = *core.mutable_thread_core()->mutable_creds();
  check_ids(policy, creds, who);
  const uint64_t held = capability_bits(creds.cap_prm()) | capability_bits(creds.cap_eff()) |
                        capability_bits(creds.cap_inh()) | capability_bits(creds.cap_amb());
  if ((held & policy.deny_capabilities) != 0)
    throw Refusal(who + " has capabilities that the receiver denies", "receive without denying them (--deny-caps)");
  // Audit would believe it, and blame somebody who may not come.
  if (core.tc().has_loginuid() && !policy.takes_uid(core.tc().loginuid())) core.mutable_tc()->set_loginuid(UINT32_MAX);
  for (int i = 0; i < std::min(creds.cap_bnd_size(), 2); ++i)
    creds.set_cap_bnd(i, creds.cap_bnd(i) & ~static_cast<uint32_t>(policy.deny_capabilities >> (32 * i)));
}

}  // namespace

void to_wire(const IdentityPolicy& policy, wire::GuardianRequest::StartDestination& out) {
  out.mutable_allow_uids()->Add(policy.allow_uids.begin(), policy.allow_uids.end());
  out.set_any_gid(!policy.allow_gids);
  if (policy.allow_gids) out.mutable_allow_gids()->Add(policy.allow_gids->begin(), policy.allow_gids->end());
  out.set_deny_capabilities(policy.deny_capabilities);
}

IdentityPolicy policy_from_wire(const wire::GuardianRequest::StartDestination& start) {
  IdentityPolicy policy;
  policy.allow_uids.assign(start.allow_uids().begin(), start.allow_uids().end());
  if (!start.any_gid()) policy.allow_gids.emplace(start.allow_gids().begin(), start.allow_gids().end());
  policy.deny_capabilities = start.deny_capabilities();
  return policy;
}

bool IdentityPolicy::takes_uid(uint32_t uid) const { return allow_uids.empty() || among(allow_uids, uid); }

bool IdentityPolicy::takes_gid(uint32_t gid) const { return !allow_gids || among(*allow_gids, gid); }

bool IdentityPolicy::bounds(uint64_t any_of) const {
  const bool root_may_come = takes_uid(0);
  return !root_may_come || (any_of & ~deny_capabilities) == 0;
}

std::vector<uint32_t> groups_of_users(const std::vector<uint32_t>& uids) {
  std::vector<uint32_t> all;
  for (const uint32_t uid : uids) {
    const passwd* user = ::getpwuid(uid);
    if (user == nullptr) continue;
    const std::string name = user->pw_name;
    const gid_t own = user->pw_gid;
    std::vector<gid_t> groups(64);
    int count = static_cast<int>(groups.size());
    if (::getgrouplist(name.c_str(), own, groups.data(), &count) < 0) {
      groups.resize(static_cast<size_t>(count));
      if (::getgrouplist(name.c_str(), own, groups.data(), &count) < 0) count = 0;
    }
    groups.resize(static_cast<size_t>(count));
    all.push_back(own);
    all.insert(all.end(), groups.begin(), groups.end());
  }
  return all;
}

namespace {

/// What has ended is somebody's, too.
void check_ended(const IdentityPolicy& policy, const std::set<pid_t>& zombies, const ImageSet& images) {
  auto reader = images.read("migrate-ext.img", magic::kMigrateExt);
  for (ext::ThreadExt e; reader && reader->next(e); e.Clear()) {
    if (!zombies.contains(static_cast<pid_t>(e.tid())) || !e.task().has_uid()) continue;
    img::creds_entry creds;
    for (const auto set : {&img::creds_entry::set_uid, &img::creds_entry::set_euid, &img::creds_entry::set_suid,
                           &img::creds_entry::set_fsuid})
      (creds.*set)(e.task().uid());
    for (const auto set : {&img::creds_entry::set_gid, &img::creds_entry::set_egid, &img::creds_entry::set_sgid,
                           &img::creds_entry::set_fsgid})
      (creds.*set)(e.task().gid());
    check_ids(policy, creds, "task " + std::to_string(e.tid()) + ", which has ended,");
  }
}

}  // namespace

void enforce_identity(const IdentityPolicy& policy, ImageSet& images) {
  if (policy.empty()) return;
  ImageSet checked;
  std::set<pid_t> zombies;
  // By the tree, as the restore goes: what calls itself a zombie must be one to it too.
  for (const TaskNode& task : read_tree(images)) {
    if (task.zombie) zombies.insert(task.pid);
    if (task.zombie) continue;
    for (const pid_t tid : task.threads) {
      const std::string name = image_name("core", static_cast<uint64_t>(tid));
      img::core_entry core;
      images.need(name, magic::kCore, core);
      const std::string who = (tid == task.pid ? "task " : "thread ") + std::to_string(tid);
      enforce(policy, who, core);
      checked.put(name, magic::kCore, core);
    }
  }
  check_ended(policy, zombies, images);
  const HostBounds bounds = HostBounds::here();
  for (const Privilege& privilege : privileges_of(images))
    if (const auto reason = why_not(privilege, policy, bounds))
      throw Refusal(*reason, "give it that capability, or take this away from it, before it is sent");
  for (const auto& [name, bytes] : checked.images()) images.adopt(name, bytes);
}

}  // namespace migrate

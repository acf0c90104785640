#include "migrate/session/guardian/identity_policy.h"

#include <algorithm>
#include <string>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "images/core.pb.h"

namespace migrate {
namespace {

constexpr uint32_t kDead = 6;  ///< a zombie, as CRIU numbers it
using Words = google::protobuf::RepeatedField<uint32_t>;

uint64_t bits(const Words& words) {
  uint64_t all = 0;
  for (int i = 0; i < std::min(words.size(), 2); ++i) all |= uint64_t{words.Get(i)} << (32 * i);
  return all;
}

void check_uids(const IdentityPolicy& policy, const img::creds_entry& creds, const std::string& who) {
  if (policy.allow_uids.empty()) return;
  for (const uint32_t uid : {creds.uid(), creds.euid(), creds.suid(), creds.fsuid()}) {
    if (std::find(policy.allow_uids.begin(), policy.allow_uids.end(), uid) != policy.allow_uids.end()) continue;
    throw Refusal(who + " has uid " + std::to_string(uid) + ", which the receiver does not allow",
                  "receive with --allow-uid " + std::to_string(uid) + " if it may run here");
  }
}

}  // namespace

void enforce_identity(const IdentityPolicy& policy, ImageSet& images) {
  if (policy.empty()) return;
  ImageSet checked;
  for (const auto& [name, bytes] : images.images()) {
    if (!name.starts_with("core-")) continue;
    img::core_entry core;
    images.need(name, magic::kCore, core);
    const std::string who = "the task of " + name;
    if (!core.has_thread_core() || !core.thread_core().has_creds()) {
      // A task that only waits to be reaped has no credentials and runs no code.
      if (core.has_tc() && core.tc().task_state() == kDead) continue;
      throw Refusal(who + " does not say which user it is", "take it from a sender that you trust");
    }
    img::creds_entry& creds = *core.mutable_thread_core()->mutable_creds();
    check_uids(policy, creds, who);
    const uint64_t held = bits(creds.cap_prm()) | bits(creds.cap_eff()) | bits(creds.cap_inh()) | bits(creds.cap_amb());
    if ((held & policy.deny_capabilities) != 0) {
      throw Refusal(who + " has capabilities that the receiver denies", "receive without denying them (--deny-caps)");
    }
    for (int i = 0; i < std::min(creds.cap_bnd_size(), 2); ++i) {
      creds.set_cap_bnd(i, creds.cap_bnd(i) & ~static_cast<uint32_t>(policy.deny_capabilities >> (32 * i)));
    }
    checked.put(name, magic::kCore, core);
  }
  for (const auto& [name, bytes] : checked.images()) images.adopt(name, bytes);
}

}  // namespace migrate

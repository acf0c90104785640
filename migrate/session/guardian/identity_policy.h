// What a receiver allows received tasks to be and to have (--allow-uid, --allow-gid, --deny-caps). The sender's
// inventory is asked early, for the sentence; the images are what is restored, and a hostile sender's two may differ.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/image/image_set.h"
#include "migration.pb.h"

namespace migrate {

struct IdentityPolicy {
  std::vector<uint32_t> allow_uids;                 ///< empty: any
  std::optional<std::vector<uint32_t>> allow_gids;  ///< nullopt: any
  uint64_t deny_capabilities = 0;

  bool empty() const { return allow_uids.empty() && !allow_gids && deny_capabilities == 0; }
  bool takes_uid(uint32_t uid) const;
  bool takes_gid(uint32_t gid) const;
  /// Whether what wants one of these capabilities must come with it. Not if the sender could send a root that has one.
  bool bounds(uint64_t any_of) const;
};

/// For the guardian that enforces it, and there.
void to_wire(const IdentityPolicy& policy, wire::GuardianRequest::StartDestination& out);
IdentityPolicy policy_from_wire(const wire::GuardianRequest::StartDestination& start);

/// The groups that this host's user database gives to these users.
std::vector<uint32_t> groups_of_users(const std::vector<uint32_t>& uids);

/// Refusal if a thread of a living task in `images` has another user or group id (real, effective, saved, file system,
/// supplementary) or a denied capability in its permitted, effective, inheritable or ambient set, if it does not say
/// what it is, or if it has what only a capability can have given it (guardian/privileges.h) and does not hold that.
/// Denied capabilities leave the bounding sets, so that no later execve(2) brings them back. To be called before
/// anything is made of the images.
void enforce_identity(const IdentityPolicy& policy, ImageSet& images);

}  // namespace migrate

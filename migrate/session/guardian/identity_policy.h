// What a receiver allows received tasks to be (--allow-uid, --deny-caps). The sender's inventory is asked early, for
// the sentence; the images are what is restored, and a hostile sender's two may differ.
#pragma once

#include <cstdint>
#include <vector>

#include "core/image/image_set.h"

namespace migrate {

struct IdentityPolicy {
  std::vector<uint32_t> allow_uids;  ///< empty: any
  uint64_t deny_capabilities = 0;
  bool empty() const { return allow_uids.empty() && deny_capabilities == 0; }
};

/// Refusal if a thread in `images` has another uid (real, effective, saved or file system) or a denied capability in
/// its permitted, effective, inheritable or ambient set, or does not say what it is. Denied capabilities leave the
/// bounding sets, so that no later execve(2) brings them back. To be called before anything is made of the images.
void enforce_identity(const IdentityPolicy& policy, ImageSet& images);

}  // namespace migrate

// --allow-uid and --deny-caps bind what is restored, whatever the sender's inventory said.
#include "migrate/session/guardian/identity_policy.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "images/core.pb.h"

namespace migrate {
namespace {

constexpr uint64_t kNetRaw = uint64_t{1} << 13, kCheckpoint = uint64_t{1} << 40;

img::core_entry core(uint32_t uid, uint64_t permitted) {
  img::core_entry c;
  c.set_mtype(img::core_entry::X86_64);
  img::thread_core_entry& t = *c.mutable_thread_core();
  t.set_futex_rla(0);
  t.set_futex_rla_len(0);
  img::creds_entry& creds = *t.mutable_creds();
  creds.set_uid(uid), creds.set_euid(uid), creds.set_suid(uid), creds.set_fsuid(uid);
  creds.set_gid(uid), creds.set_egid(uid), creds.set_sgid(uid), creds.set_fsgid(uid);
  creds.set_secbits(0);
  for (int i = 0; i < 2; ++i) {
    creds.add_cap_prm(static_cast<uint32_t>(permitted >> (32 * i)));
    creds.add_cap_eff(0), creds.add_cap_inh(0);
    creds.add_cap_bnd(0xffffffff);
  }
  return c;
}

ImageSet images_of(const img::core_entry& leader, const img::core_entry& thread) {
  ImageSet images;
  images.put("core-1.img", magic::kCore, leader);
  images.put("core-2.img", magic::kCore, thread);
  return images;
}

TEST(IdentityPolicy, AnythingGoesWithoutOne) {
  ImageSet images = images_of(core(0, ~uint64_t{0}), core(0, ~uint64_t{0}));
  const auto before = images.images();
  EXPECT_NO_THROW(enforce_identity({}, images));
  EXPECT_EQ(images.images(), before);
}

TEST(IdentityPolicy, EveryThreadsUidIsLookedAt) {
  ImageSet good = images_of(core(1000, 0), core(1000, 0));
  EXPECT_NO_THROW(enforce_identity({{1000}, 0}, good));
  ImageSet bad = images_of(core(1000, 0), core(0, 0));
  EXPECT_THROW(enforce_identity({{1000}, 0}, bad), Refusal);
  img::core_entry saved = core(1000, 0);
  saved.mutable_thread_core()->mutable_creds()->set_suid(0);
  ImageSet hidden = images_of(core(1000, 0), saved);
  EXPECT_THROW(enforce_identity({{1000}, 0}, hidden), Refusal);
}

TEST(IdentityPolicy, DeniedCapabilitiesOfEitherWordAreRefused) {
  for (const uint64_t denied : {kNetRaw, kCheckpoint}) {
    ImageSet bad = images_of(core(0, 0), core(0, denied));
    EXPECT_THROW(enforce_identity({{}, denied}, bad), Refusal);
  }
  img::core_entry ambient = core(0, 0);
  ambient.mutable_thread_core()->mutable_creds()->add_cap_amb(static_cast<uint32_t>(kNetRaw));
  ImageSet bad = images_of(core(0, 0), ambient);
  EXPECT_THROW(enforce_identity({{}, kNetRaw}, bad), Refusal);
}

TEST(IdentityPolicy, DeniedCapabilitiesLeaveTheBoundingSet) {
  ImageSet images = images_of(core(0, 0), core(0, 0));
  enforce_identity({{}, kNetRaw | kCheckpoint}, images);
  for (const char* name : {"core-1.img", "core-2.img"}) {
    img::core_entry c;
    images.need(name, magic::kCore, c);
    EXPECT_EQ(c.thread_core().creds().cap_bnd(0), 0xffffffff & ~static_cast<uint32_t>(kNetRaw));
    EXPECT_EQ(c.thread_core().creds().cap_bnd(1), 0xffffffff & ~static_cast<uint32_t>(kCheckpoint >> 32));
  }
}

TEST(IdentityPolicy, ATaskWithoutCredentialsIsRefusedUnlessDead) {
  img::core_entry silent;
  silent.set_mtype(img::core_entry::X86_64);
  ImageSet bad = images_of(core(1000, 0), silent);
  EXPECT_THROW(enforce_identity({{1000}, 0}, bad), Refusal);
}

}  // namespace
}  // namespace migrate

#include "core/inject/attributes.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "core/inject/parasite_protocol.h"

namespace migrate {
namespace {

constexpr uint64_t kGetCpuid = 0x1011, kSetCpuid = 0x1012;  // arch_prctl(2), asm/prctl.h

constexpr Attribute speculation_control(uint32_t id, const char* name, uint64_t which,
                                        uint64_t usual = PR_SPEC_ENABLE) {
  return {.id = id,
          .name = name,
          .get = SYS_prctl,
          .get_args = {PR_GET_SPECULATION_CTRL, which},
          .by_address = false,
          .usual = PR_SPEC_PRCTL | usual,
          .most = 31,
          .set = SYS_prctl,
          .set_args = {PR_SET_SPECULATION_CTRL, which, kAttributeValue},
          .settable = PR_SPEC_PRCTL};
}

constexpr std::array kThreadAttributes{
    Attribute{.id = 1,
              .name = "its mode of reading the time stamp counter",
              .get = SYS_prctl,
              .get_args = {PR_GET_TSC, kAttributeValue},
              .by_address = true,
              .usual = PR_TSC_ENABLE,
              .most = PR_TSC_SIGSEGV,
              .set = SYS_prctl,
              .set_args = {PR_SET_TSC, kAttributeValue}},
    Attribute{.id = 2,
              .name = "whether it may ask the processor (CPUID)",
              .get = SYS_arch_prctl,
              .get_args = {kGetCpuid},
              .by_address = false,
              .usual = 1,
              .most = 1,
              .set = SYS_arch_prctl,
              .set_args = {kSetCpuid, kAttributeValue}},
    Attribute{.id = kMemoryPolicy,
              .name = "its memory policy",
              .get = SYS_get_mempolicy,
              .get_args = {kAttributeValue},
              .by_address = true,
              .usual = 0,  // MPOL_DEFAULT
              .most = 0xffff,
              .set = kSetApart,
              .set_args = {}},
    Attribute{.id = kMemoryPolicyNodes,  // of a machine that may have more than fit nothing is told
              .name = "the nodes of its memory policy",
              .get = SYS_get_mempolicy,
              .get_args = {0, kAttributeValue, 64},
              .by_address = true,
              .usual = 0,
              .most = ~uint64_t{0},
              .set = kSetApart,
              .set_args = {}},
    speculation_control(5, "its control of speculative stores", PR_SPEC_STORE_BYPASS),
    speculation_control(6, "its control of speculative branches", PR_SPEC_INDIRECT_BRANCH),
    speculation_control(7, "its flush of the first-level cache", PR_SPEC_L1D_FLUSH, PR_SPEC_DISABLE),
};
static_assert(kThreadAttributes.size() <= parasite::kMostAttributes);

}  // namespace

std::span<const Attribute> thread_attributes() { return kThreadAttributes; }

const Attribute* thread_attribute(uint32_t id) {
  const auto found = std::ranges::find(kThreadAttributes, id, &Attribute::id);
  return found == kThreadAttributes.end() ? nullptr : &*found;
}

std::array<uint64_t, 5> with_value(std::array<uint64_t, 5> args, uint64_t value) {
  std::ranges::replace(args, kAttributeValue, value);
  return args;
}

}  // namespace migrate

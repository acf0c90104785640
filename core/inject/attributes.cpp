#include "core/inject/attributes.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "core/inject/parasite_protocol.h"

namespace migrate {
namespace {

constexpr uint64_t kGetCpuid = 0x1011, kSetCpuid = 0x1012;  // arch_prctl(2), asm/prctl.h

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

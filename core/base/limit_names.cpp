#include "core/base/limit_names.h"

#include <sys/resource.h>

#include <array>

namespace migrate {

std::string limit_name(uint64_t resource) {
  static constexpr auto kNames = [] {
    std::array<const char*, RLIM_NLIMITS> names{};
    names[RLIMIT_CPU] = "RLIMIT_CPU";
    names[RLIMIT_FSIZE] = "RLIMIT_FSIZE";
    names[RLIMIT_DATA] = "RLIMIT_DATA";
    names[RLIMIT_STACK] = "RLIMIT_STACK";
    names[RLIMIT_CORE] = "RLIMIT_CORE";
    names[RLIMIT_RSS] = "RLIMIT_RSS";
    names[RLIMIT_NPROC] = "RLIMIT_NPROC";
    names[RLIMIT_NOFILE] = "RLIMIT_NOFILE";
    names[RLIMIT_MEMLOCK] = "RLIMIT_MEMLOCK";
    names[RLIMIT_AS] = "RLIMIT_AS";
    names[RLIMIT_LOCKS] = "RLIMIT_LOCKS";
    names[RLIMIT_SIGPENDING] = "RLIMIT_SIGPENDING";
    names[RLIMIT_MSGQUEUE] = "RLIMIT_MSGQUEUE";
    names[RLIMIT_NICE] = "RLIMIT_NICE";
    names[RLIMIT_RTPRIO] = "RLIMIT_RTPRIO";
    names[RLIMIT_RTTIME] = "RLIMIT_RTTIME";
    return names;
  }();
  return resource < kNames.size() ? kNames.at(resource) : "number " + std::to_string(resource);
}

}  // namespace migrate

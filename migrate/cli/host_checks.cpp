#include "migrate/cli/host_checks.h"

#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <sstream>

#include "core/base/fd.h"
#include "core/base/procfs.h"
#include "core/freeze/apart_cgroups.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/memory/mapping_reader.h"
#include "pageserver/tls.h"

namespace migrate::cli {
namespace {

/// The first line of a small file of the kernel's; "" if it is not there.
std::string setting(const char* path) {
  try {
    const std::string text = read_file_at(AT_FDCWD, path);
    return text.substr(0, text.find('\n'));
  } catch (const Error&) {
    return "";
  }
}

Feature cpu_cgroup() {
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  std::string found;
  if (const auto v1 = find_cgroup_mount(mounts, false, "cpu")) found = "v1 at " + v1->point;
  if (const auto v2 = find_cgroup_mount(mounts, true); v2 && found.empty()) {
    std::istringstream controllers(setting((v2->point + "/cgroup.controllers").c_str()));
    for (std::string one; controllers >> one;)
      if (one == "cpu") found = "v2 at " + v2->point;
  }
  return {"cpu_cgroup",
          false,
          !found.empty(),
          "slowing programs down (`send --on-no-convergence throttle`)",
          "they are slowed down by pauses",
          "mount cgroup2 or cgroup v1 with the cpu controller",
          found};
}

Feature apart_cgroups() {
  const ApartParents parents = find_apart_parents();
  std::string found = parents.without;
  if (found.empty())
    for (const std::string& folder : parents.folders) found += (found.empty() ? "below " : ", ") + folder;
  return {"apart_cgroups",
          false,
          parents.without.empty(),
          "cgroups apart from the receiver's, for what brings pages late and for programs (`receive --cgroup`)",
          "whoever stops the receiver's cgroup ends them, too",
          "run with all of the cgroup hierarchies mounted, to be written to",
          found};
}

Feature huge_pages() {
  const std::string mode = setting("/sys/kernel/mm/transparent_hugepage/enabled");
  const bool on = !mode.empty() && mode.find("[never]") == std::string::npos;
  return {"huge_pages",
          false,
          on,
          "transparent huge pages",
          "received programs have small pages only",
          "write madvise or always to /sys/kernel/mm/transparent_hugepage/enabled",
          mode};
}

/// Limits of ours below which a received program's cannot be raised again without CAP_SYS_RESOURCE.
Feature hard_limits() {
  struct Limit {
    __rlimit_resource_t number;
    const char* name;
  };
  static constexpr std::array kLimits{Limit{RLIMIT_NOFILE, "open files"}, Limit{RLIMIT_MEMLOCK, "locked memory"},
                                      Limit{RLIMIT_NPROC, "processes"},   Limit{RLIMIT_AS, "address space"},
                                      Limit{RLIMIT_STACK, "stack"},       Limit{RLIMIT_SIGPENDING, "queued signals"}};
  std::string bounded;
  for (const Limit& limit : kLimits) {
    rlimit own{};
    check(::getrlimit(limit.number, &own), "read", "our own limits");
    if (own.rlim_max == RLIM_INFINITY) continue;
    bounded += (bounded.empty() ? "" : ", ") + std::string(limit.name) + " " + std::to_string(own.rlim_max);
  }
  const bool raises = ::prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) == 1;
  return {"hard_limits",
          false,
          raises || bounded.empty(),
          "giving programs their limits back",
          "programs with a higher hard limit are refused by `restore` and `receive`",
          "run with CAP_SYS_RESOURCE, or raise the hard limits of the shell or service",
          bounded.empty() ? "ours are unlimited" : "ours: " + bounded + (raises ? "; we may raise them" : "")};
}

Feature descriptors() {
  constexpr rlim_t kEnough = 65536;
  rlimit own{};
  check(::getrlimit(RLIMIT_NOFILE, &own), "read", "our own limits");
  return {"descriptors",
          false,
          own.rlim_max >= kEnough,
          "opening what a program has open",
          "programs with many open files cannot be dumped or received",
          "raise the hard limit of open files to " + std::to_string(kEnough) + " or more",
          "up to " + std::to_string(own.rlim_max)};
}

Feature pipe_size() {
  const std::string bytes = setting("/proc/sys/fs/pipe-max-size");
  constexpr unsigned long kUsual = 1 << 20;
  return {"pipe_size",
          false,
          std::strtoul(bytes.c_str(), nullptr, 10) >= kUsual,
          "data in large pipes",
          "programs with larger pipes are refused",
          "set fs.pipe-max-size to 1048576 or more",
          "up to " + bytes + " bytes"};
}

}  // namespace

std::vector<Feature> kernel_features() {
  std::vector<Feature> all = probe_features();
  all.push_back({"vma_iterator", false, MappingReader::best().is_quick(),
                 "reading the flags of mappings without walking page tables",
                 "a program stands still for some 25 ms a GiB longer",
                 "use Linux 6.1 or newer with CONFIG_DEBUG_INFO_BTF, and run with CAP_BPF and CAP_PERFMON", ""});
  return all;
}

std::vector<Feature> needed_capabilities() {
  std::vector<Feature> all;
  for (const std::string& name : missing_capabilities()) {
    all.push_back({name, true, false, "acting for programs of all users", "nothing can be moved",
                   "run as root, or with this capability", ""});
  }
  if (all.empty())
    all.push_back({"capabilities", true, true, "acting for programs of all users", "nothing can be moved",
                   "run as root", "all that are needed"});
  return all;
}

std::vector<Feature> settings() {
  return {cpu_cgroup(), apart_cgroups(), huge_pages(), hard_limits(), descriptors(), pipe_size()};
}

std::vector<Feature> keys(const LinkOptions& link, bool required) {
  Feature tls{"tls_keys",
              required,
              true,
              "certificates for `send` and `receive`",
              "they connect to nobody",
              "make keys with `migrate keys`, and copy them there as it says",
              ""};
  if (!link.tls) {
    tls.present = false;
    tls.found = "--insecure was given";
    return {tls};
  }
  try {
    const TlsContext usable(*link.tls);
    tls.found = link.tls->cert;
  } catch (const Error& e) {
    const std::string sentence = e.what();
    const size_t cut = sentence.rfind("; ");
    tls.present = false;
    tls.found = sentence.substr(0, cut);
    if (cut != std::string::npos) tls.remedy = sentence.substr(cut + 2);
  }
  return {tls};
}

}  // namespace migrate::cli

#include "core/freeze/apart_cgroups.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/cgroup_mounts.h"

namespace migrate {
namespace {

constexpr std::array kOfV1{"memory", "pids", "freezer", "name=systemd"};

/// From the mounted folder down to the parent of `own`; that alone where we see no more of the hierarchy.
std::vector<std::string> candidates(const CgroupMount& mount, const std::string& own) {
  std::vector<std::string> all{mount.point};
  for (size_t slash = own.find('/', mount.point.size() + 1); slash != std::string::npos;
       slash = own.find('/', slash + 1))
    all.push_back(own.substr(0, slash));
  return all;
}

/// 0, or why not.
int why_unusable(const std::string& folder) {
  struct stat st {};
  if (::stat(folder.c_str(), &st) != 0) return errno;
  if (st.st_uid != 0 || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) return EPERM;  // delegated
  return ::faccessat(AT_FDCWD, folder.c_str(), W_OK | X_OK, AT_EACCESS) == 0 ? 0 : errno;
}

/// Throws Error if there is none.
std::string outermost(const CgroupMount& mount, bool v2, const char* controller) {
  int why = 0;
  for (const std::string& folder : candidates(mount, cgroup_folder(mount, ::getpid(), v2, controller))) {
    const int this_one = why_unusable(folder);
    if (this_one == 0) return folder;
    if (why == 0) why = this_one;
  }
  throw Error("make a cgroup below", mount.point, why);
}

}  // namespace

ApartParents find_apart_parents() {
  ApartParents found;
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  std::vector<std::string> seen;
  const auto look = [&](bool v2, const char* controller) {
    const std::optional<CgroupMount> mount = find_cgroup_mount(mounts, v2, controller);
    if (!mount || std::ranges::find(seen, mount->point) != seen.end()) return;
    seen.push_back(mount->point);
    try {
      found.folders.push_back(outermost(*mount, v2, controller));
    } catch (const Error& e) {
      if (found.without.empty()) found.without = e.what();
    }
  };
  look(true, "");
  for (const char* controller : kOfV1) look(false, controller);
  if (seen.empty()) found.without = "no cgroup hierarchy is mounted";
  return found;
}

void make_cgroups(const std::vector<std::string>& folders) {
  for (size_t made = 0; made < folders.size(); ++made) {
    if (::mkdir(folders[made].c_str(), 0755) == 0) continue;
    const int why = errno;
    for (size_t i = made; i-- > 0;) ::rmdir(folders[i].c_str());
    throw Error("make cgroup", folders[made], why);
  }
}

void remove_cgroups(const std::vector<std::string>& folders, std::chrono::milliseconds patience) {
  const Deadline deadline = Deadline::in(patience);
  std::optional<Error> stays;
  for (const std::string& folder : folders) {
    // Who dies keeps it busy for a moment.
    for (useconds_t nap = 300;; nap = std::min<useconds_t>(nap * 2, 20'000)) {
      if (::rmdir(folder.c_str()) == 0 || errno == ENOENT || errno == ENODEV) break;
      if (const int why = errno; why != EBUSY || deadline.passed()) {
        if (!stays) stays.emplace("remove cgroup", folder, why);
        break;
      }
      ::usleep(nap);
    }
  }
  if (stays) throw Error(*stays);
}

}  // namespace migrate

#include "lazypages/guards.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <string>

#include "core/base/error.h"
#include "core/base/kernel_abi.h"

namespace migrate {
namespace {

/// 0: gone, or not to be seen in our pid namespace.
int number_of(int pidfd) {
  const std::string info = read_file_at(AT_FDCWD, "/proc/self/fdinfo/" + std::to_string(pidfd));
  const size_t line = info.find("\nPid:");
  return line == std::string::npos ? 0 : std::max(0, std::atoi(info.c_str() + line + 5));
}

}  // namespace

GuardScan::GuardScan(int pidfd) {
  const int pid = number_of(pidfd);
  if (pid == 0) return;
  try {
    pagemap_ = open_path("/proc/" + std::to_string(pid) + "/pagemap", O_RDONLY);
    // Still the same process, so that this was its pagemap.
    if (number_of(pidfd) != pid) pagemap_.reset();
  } catch (const Error& e) {
    if (e.code() != ENOENT && e.code() != ESRCH) throw;
  }
}

std::vector<RemoteRange> GuardScan::in(RemoteRange range) {
  std::vector<RemoteRange> guards;
  std::array<page_region, 32> regions;
  for (uint64_t from = range.start.get(); pagemap_ && !useless_ && from < range.end.get();) {
    pm_scan_arg arg{};
    arg.size = sizeof arg;
    arg.start = from;
    arg.end = range.end.get();
    arg.vec = reinterpret_cast<uint64_t>(regions.data());
    arg.vec_len = regions.size();
    arg.category_mask = arg.return_mask = PAGE_IS_GUARD;
    const int n = ::ioctl(pagemap_.get(), PAGEMAP_SCAN, &arg);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) useless_ = true;  // the memory is dead, or the kernel does not know guards
    for (int i = 0; i < n; ++i) {
      const page_region& region = regions[static_cast<size_t>(i)];
      guards.push_back({RemoteAddr(region.start), RemoteAddr(region.end)});
    }
    // Not full: all was walked, wherever walk_end stands (see core/memory/track_scan.cpp).
    if (n < static_cast<int>(regions.size()) || arg.walk_end <= from) break;
    from = arg.walk_end;
  }
  return guards;
}

}  // namespace migrate

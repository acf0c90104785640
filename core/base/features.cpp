#include "core/base/features.h"

#include <elf.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>
#include <functional>

#include "core/base/fd.h"
#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"

#ifndef MADV_COLLAPSE  // 6.1
#define MADV_COLLAPSE 25
#endif

namespace migrate {
namespace {

/// Runs `probe` in a child; its verdict is the exit code, so that whatever it does to itself is gone afterwards.
bool in_child(const std::function<bool()>& probe) {
  const pid_t pid = ::fork();
  if (pid < 0) return false;
  if (pid == 0) ::_exit(probe() ? 0 : 1);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// A child that does nothing but wait to be killed.
class IdleChild {
 public:
  IdleChild() : pid_(::fork()) {
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
  }
  IdleChild(const IdleChild&) = delete;
  IdleChild& operator=(const IdleChild&) = delete;
  ~IdleChild() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    int status;
    while (::waitpid(pid_, &status, __WALL) < 0 && errno == EINTR) {
    }
  }
  pid_t pid() const { return pid_; }
  bool seize(unsigned long options = 0) const {
    int status;
    return ::ptrace(PTRACE_SEIZE, pid_, nullptr, options) == 0 &&
           ::ptrace(PTRACE_INTERRUPT, pid_, nullptr, nullptr) == 0 && ::waitpid(pid_, &status, __WALL) == pid_ &&
           WIFSTOPPED(status);
  }

 private:
  pid_t pid_;
};

bool probe_kcmp() { return ::syscall(SYS_kcmp, ::getpid(), ::getpid(), KCMP_FILE, 0, 0) == 0; }

bool probe_pidfd_getfd() {
  const auto self = open_pidfd(::getpid());
  const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return self && null && Fd(static_cast<int>(::syscall(SYS_pidfd_getfd, self->get(), null.get(), 0)));
}

bool probe_clone3_set_tid() {
  return in_child([] {
    if (::unshare(CLONE_NEWPID) != 0) return false;
    pid_t first = 1;  // the first process of a pid namespace is 1 and holds it open
    clone_args args{};
    args.exit_signal = SIGCHLD;
    args.set_tid = reinterpret_cast<uint64_t>(&first);
    args.set_tid_size = 1;
    const long child = ::syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) ::_exit(0);
    int status;
    return child > 0 && ::waitpid(static_cast<pid_t>(child), &status, 0) == child;
  });
}

bool probe_timens() {
  return in_child([] {
    if (::unshare(CLONE_NEWTIME) != 0) return false;
    const Fd offsets(::open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
    const std::string_view text = "monotonic 1000 0\nboottime 1000 0\n";
    return offsets && ::write(offsets.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
  });
}

uint64_t userfaultfd_features() {
  const Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)));
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  return fd && ::ioctl(fd.get(), UFFDIO_API, &api) == 0 ? api.features : 0;
}

bool probe_userfaultfd() {
  const Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  uffdio_api api{};
  api.api = UFFD_API;
  return fd && ::ioctl(fd.get(), UFFDIO_API, &api) == 0;
}

bool probe_map_files() {
  void* area = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return false;
  char path[96];
  const auto at = reinterpret_cast<uintptr_t>(area);
  std::snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", at, at + kPageSize);
  const Fd fd(::open(path, O_RDWR | O_CLOEXEC));
  ::munmap(area, kPageSize);
  return static_cast<bool>(fd);
}

bool probe_pagemap_scan() {
  const Fd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  pm_scan_arg arg{};
  arg.size = sizeof arg;
  const auto here = page_floor(reinterpret_cast<uintptr_t>(&arg));
  page_region region{};
  arg.start = here;
  arg.end = here + kPageSize;
  arg.vec = reinterpret_cast<uint64_t>(&region);
  arg.vec_len = 1;
  arg.category_mask = PAGE_IS_PRESENT;
  arg.return_mask = PAGE_IS_PRESENT;
  return fd && ::ioctl(fd.get(), PAGEMAP_SCAN, &arg) == 1;
}

bool probe_write_protection() {
  const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  pm_scan_arg arg{};
  arg.size = sizeof arg;
  arg.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
  arg.category_mask = PAGE_IS_WRITTEN;
  if (!pagemap || ::ioctl(pagemap.get(), PAGEMAP_SCAN, &arg) != 0) return false;  // an empty range
  const Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY)));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kAsyncProtection;
  return fd && ::ioctl(fd.get(), UFFDIO_API, &api) == 0;
}

bool is_soft_dirty(int pagemap, const char* address) {
  uint64_t word = 0;
  const auto at = static_cast<off_t>(reinterpret_cast<uintptr_t>(address) / kPageSize * sizeof word);
  return ::pread(pagemap, &word, sizeof word, at) == sizeof word && (word >> 55 & 1) != 0;
}

bool clear_soft_dirty() {
  const Fd file(::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC));
  return file && ::write(file.get(), "4", 1) == 1;
}

/// Whether the bits are kept, are cleared, and are set by writes and moves. A kernel that moves whole page tables
/// without setting them would hide that memory has moved.
bool probe_soft_dirty() {
  return in_child([] {
    constexpr size_t kTable = kHugePageSize;  // what one page table maps
    const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    auto* area =
        static_cast<char*>(::mmap(nullptr, 4 * kTable, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (!pagemap || area == MAP_FAILED || ::madvise(area, 4 * kTable, MADV_NOHUGEPAGE) != 0) return false;
    char* from = area + (kTable - reinterpret_cast<uintptr_t>(area) % kTable) % kTable;
    char* to = from + 2 * kTable;
    for (size_t at = 0; at < kTable; at += kPageSize) from[at] = 1;
    if (!is_soft_dirty(pagemap.get(), from) || !clear_soft_dirty() || is_soft_dirty(pagemap.get(), from)) return false;
    *static_cast<volatile char*>(from) = 2;
    if (!is_soft_dirty(pagemap.get(), from) || is_soft_dirty(pagemap.get(), from + kPageSize)) return false;
    if (!clear_soft_dirty() || ::mremap(from, kTable, kTable, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) return false;
    for (size_t at = 0; at < kTable; at += kPageSize)
      if (!is_soft_dirty(pagemap.get(), to + at)) return false;
    return true;
  });
}

bool probe_seize() { return IdleChild().seize(); }
bool probe_suspend_seccomp() { return IdleChild().seize(PTRACE_O_SUSPEND_SECCOMP); }

bool probe_rseq_configuration() {
  const IdleChild child;
  if (!child.seize()) return false;
  std::byte config[32];
  return ::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), child.pid(), sizeof config, config) > 0;
}

bool probe_openat2() {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  return static_cast<bool>(Fd(static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, "/", &how, sizeof how))));
}

bool probe_futex_waitv() {
  // No futexes: EINVAL where the call is known.
  return ::syscall(SYS_futex_waitv, nullptr, 0, 0, nullptr, 0) < 0 && errno == EINVAL;
}

/// An advice that is known is taken for an empty range.
bool probe_collapse() {
  void* area = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return false;
  const bool known = ::madvise(area, 0, MADV_COLLAPSE) == 0;
  ::munmap(area, kPageSize);
  return known;
}

bool probe_io_uring() {
  io_uring_params params{};
  return static_cast<bool>(Fd(static_cast<int>(::syscall(SYS_io_uring_setup, 1, &params))));
}

bool probe_unix_diag() {
  return static_cast<bool>(Fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 4 /* SOCK_DIAG */)));
}

bool mounted(std::string_view type, std::string_view option) {
  const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
  size_t line = 0;
  while (line < mounts.size()) {
    const size_t end = std::min(mounts.find('\n', line), mounts.size());
    const std::string_view text(mounts.data() + line, end - line);
    const size_t dash = text.find(" - ");
    if (dash != std::string_view::npos) {
      const std::string_view tail = text.substr(dash + 3);
      if (tail.starts_with(std::string(type) + " ") && tail.find(option) != std::string_view::npos) return true;
    }
    line = end + 1;
  }
  return false;
}

}  // namespace

const uint64_t kAsyncProtection = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                  UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;

DirtyTracking probe_dirty_tracking() {
  if (probe_write_protection()) return DirtyTracking::write_protection;
  return probe_soft_dirty() ? DirtyTracking::soft_dirty : DirtyTracking::none;
}

namespace {

std::vector<Feature> required_features() {
  const std::string nothing = "nothing can be moved";
  const auto needs = [&](const char* name, bool present, const char* use, const char* remedy) {
    return Feature{name, true, present, use, nothing, remedy, ""};
  };
  return {
      needs("ptrace_seize", probe_seize(), "stopping tasks",
            "run with CAP_SYS_PTRACE, and with kernel.yama.ptrace_scope below 3"),
      needs("kcmp", probe_kcmp(), "telling shared descriptors apart", "use a kernel with CONFIG_KCMP"),
      needs("pidfd_getfd", probe_pidfd_getfd(), "getting at the descriptors of tasks", "use Linux 5.6 or newer"),
      needs("map_files", probe_map_files(), "opening shared mappings", "run with CAP_SYS_ADMIN"),
      needs("clone3_set_tid", probe_clone3_set_tid(), "giving tasks their pids back, in pid namespaces",
            "use Linux 5.5 or newer with CONFIG_PID_NS"),
      needs("timens", probe_timens(), "clocks that go on", "use Linux 5.6 or newer with CONFIG_TIME_NS"),
      needs("openat2", probe_openat2(), "opening paths from images safely", "use Linux 5.6 or newer"),
      needs("ptrace_get_rseq_conf", probe_rseq_configuration(), "restartable sequences", "use Linux 5.13 or newer"),
      needs("futex_waitv", probe_futex_waitv(), "waiting inside a visited task", "use Linux 5.16 or newer"),
      needs("sock_diag", probe_unix_diag(), "describing sockets", "use a kernel with CONFIG_UNIX_DIAG"),
      needs("freezer", mounted("cgroup2", "") || mounted("cgroup", "freezer"), "holding a tree without a tracer",
            "mount cgroup2, or cgroup v1 with the freezer controller"),
  };
}

std::vector<Feature> optional_features() {
  const bool wp_async = probe_write_protection();
  return {
      {"freezer_v2", false, mounted("cgroup2", ""), "holding a tree in cgroup v2", "the v1 freezer is used",
       "nothing, or mount cgroup2", ""},
      {"uffd", false, probe_userfaultfd(), "filling memory from the network",
       "`receive` takes no program; `restore` does without", "use a kernel with CONFIG_USERFAULTFD", ""},
      {"pagemap_scan", false, probe_pagemap_scan(), "finding pages fast", "tables of pages are read piece by piece",
       "use Linux 6.7 or newer", ""},
      {"uffd_wp_async", false, wp_async, "pre-copy: telling what a running program writes",
       "programs are stopped while they are copied (unless there is mem_dirty_track), and `pre-dump` is refused",
       "use Linux 6.7 or newer with CONFIG_USERFAULTFD", ""},
      {"mem_dirty_track", false, probe_soft_dirty(), "pre-copy by soft-dirty bits",
       wp_async ? "nothing is lost: uffd_wp_async is used" : "there is no pre-copy",
       wp_async ? "nothing" : "use Linux 6.7 or newer, or a kernel with CONFIG_MEM_SOFT_DIRTY", ""},
      {"seccomp_suspend", false, probe_suspend_seccomp(), "stopping tasks with seccomp filters",
       "nothing is lost: such tasks are refused anyway", "nothing", ""},
      {"madv_collapse", false, probe_collapse(), "putting huge pages together again after tracking",
       "huge pages that pre-copy split stay split when a move is cancelled",
       "use Linux 6.1 or newer with CONFIG_TRANSPARENT_HUGEPAGE", ""},
      {"io_uring", false, probe_io_uring(), "writing and reading page files",
       "page files are written and read by plain calls", "set kernel.io_uring_disabled to 0", ""},
  };
}

}  // namespace

bool can_poison_pages() { return (userfaultfd_features() & UFFD_FEATURE_POISON) != 0; }

std::vector<Feature> probe_features() {
  std::vector<Feature> all = required_features();
  for (Feature& feature : optional_features()) all.push_back(std::move(feature));
  return all;
}

std::vector<std::string> missing_capabilities() {
  struct Needed {
    int number;
    const char* name;
  };
  static constexpr Needed kNeeded[] = {
      {CAP_CHOWN, "CAP_CHOWN"},           {CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"},
      {CAP_FOWNER, "CAP_FOWNER"},         {CAP_KILL, "CAP_KILL"},
      {CAP_SETGID, "CAP_SETGID"},         {CAP_SETUID, "CAP_SETUID"},
      {CAP_SETPCAP, "CAP_SETPCAP"},       {CAP_NET_ADMIN, "CAP_NET_ADMIN"},
      {CAP_SYS_CHROOT, "CAP_SYS_CHROOT"}, {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
      {CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},   {CAP_SYS_NICE, "CAP_SYS_NICE"},
      {CAP_SYS_TIME, "CAP_SYS_TIME"},
  };
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  check(::syscall(SYS_capget, &header, data), "read capabilities");
  std::vector<std::string> missing;
  for (const Needed& n : kNeeded) {
    if ((data[n.number / 32].effective >> (n.number % 32) & 1) == 0) missing.emplace_back(n.name);
  }
  return missing;
}

void demand_capabilities() {
  if (::geteuid() == 0) return;
  if (const auto missing = missing_capabilities(); !missing.empty())
    throw Refusal("this command, run by user " + std::to_string(::geteuid()) + ", lacks " + missing.front(),
                  "run as root, see `migrate check`");
}

}  // namespace migrate

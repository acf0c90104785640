// Preloaded: makes system calls of our processes fail, as no test can make a disk, a kernel or a network fail.
//
// FAILING_CALLS="ROLE:KIND:FIRST:COUNT:ERRNO[,...]": in processes whose first argument is ROLE ("guardian-source") the
// calls of KIND (sync, rename, write, mmap, fork, accept) fail from the FIRST to the (FIRST + COUNT - 1)th with ERRNO.
// Forked children go on counting where their parent was. FAILING_CALLS_LOG names a file that gets a line for each; once
// there is one of that name with ".over" behind it, no call fails any more.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

enum Kind { kSync, kRename, kWrite, kMmap, kFork, kAccept, kKinds };
constexpr std::array<const char*, kKinds> kNames = {"sync", "rename", "write", "mmap", "fork", "accept"};

struct Plan {
  uint64_t first = 0, count = 0;
  int error = 0;
};

/// Plain: used before main() and after fork(2).
struct State {
  std::array<Plan, kKinds> plans{};
  std::array<std::atomic<uint64_t>, kKinds> calls{};
  std::array<char, 64> role{};
  const char* log = nullptr;
};
constinit State g_state{};

long raw(long number, long a = 0, long b = 0, long c = 0, long d = 0) {
  static const auto real = reinterpret_cast<long (*)(long, ...)>(::dlsym(RTLD_NEXT, "syscall"));
  return real(number, a, b, c, d);
}

/// argv[1], "" if there is none.
void read_role() {
  std::array<char, 4096> line{};
  const long fd = raw(SYS_openat, AT_FDCWD, reinterpret_cast<long>("/proc/self/cmdline"), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  const long n = raw(SYS_read, fd, reinterpret_cast<long>(line.data()), line.size() - 1);
  raw(SYS_close, fd);
  const size_t second = std::strlen(line.data()) + 1;
  if (n > 0 && second < static_cast<size_t>(n)) {
    std::snprintf(g_state.role.data(), g_state.role.size(), "%.63s", line.data() + second);
  }
}

__attribute__((constructor)) void begin() {
  read_role();
  g_state.log = std::getenv("FAILING_CALLS_LOG");
  const char* at = std::getenv("FAILING_CALLS");
  while (at != nullptr && *at != 0) {
    std::array<char, 64> role{}, kind{};
    Plan plan;
    if (std::sscanf(at, "%63[^:]:%63[^:]:%lu:%lu:%d", role.data(), kind.data(), &plan.first, &plan.count,
                    &plan.error) != 5) {
      std::fprintf(stderr, "FAILING_CALLS: \"%s\"?\n", at);
      ::_exit(99);
    }
    for (size_t i = 0; i < kKinds; ++i) {
      const bool ours = std::strcmp(role.data(), g_state.role.data()) == 0;
      if (ours && std::strcmp(kind.data(), kNames[i]) == 0) g_state.plans[i] = plan;
    }
    at = std::strchr(at, ',');
    if (at != nullptr) ++at;
  }
}

bool is_over() {
  std::array<char, 4096> name{};
  if (g_state.log == nullptr) return false;
  std::snprintf(name.data(), name.size(), "%s.over", g_state.log);
  return raw(SYS_faccessat, AT_FDCWD, reinterpret_cast<long>(name.data()), F_OK) == 0;
}

/// Writing to one cannot fail but for EAGAIN: eventfd(2).
bool is_eventfd(int fd) {
  std::array<char, 64> name{}, target{};
  std::snprintf(name.data(), name.size(), "/proc/self/fd/%d", fd);
  const long n = raw(SYS_readlinkat, AT_FDCWD, reinterpret_cast<long>(name.data()),
                     reinterpret_cast<long>(target.data()), target.size() - 1);
  return n > 0 && std::strcmp(target.data(), "anon_inode:[eventfd]") == 0;
}

bool fails(Kind kind, int fd = -1) {
  const Plan& plan = g_state.plans[kind];
  if (plan.count == 0) return false;
  const uint64_t n = ++g_state.calls[kind];
  if (n < plan.first || n - plan.first >= plan.count) return false;
  if ((kind == kWrite && is_eventfd(fd)) || is_over()) return false;
  if (g_state.log != nullptr) {
    std::array<char, 160> line{};
    const int size = std::snprintf(line.data(), line.size(), "%s %s %lu\n", g_state.role.data(), kNames[kind], n);
    const long fd =
        raw(SYS_openat, AT_FDCWD, reinterpret_cast<long>(g_state.log), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
      raw(SYS_write, fd, reinterpret_cast<long>(line.data()), size);
      raw(SYS_close, fd);
    }
  }
  errno = plan.error;
  return true;
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int fsync(int fd) { return fails(kSync) ? -1 : next<int(int)>("fsync")(fd); }
int fdatasync(int fd) { return fails(kSync) ? -1 : next<int(int)>("fdatasync")(fd); }
int syncfs(int fd) noexcept { return fails(kSync) ? -1 : next<int(int)>("syncfs")(fd); }

int rename(const char* from, const char* to) noexcept {
  return fails(kRename) ? -1 : next<int(const char*, const char*)>("rename")(from, to);
}
int renameat(int a, const char* from, int b, const char* to) noexcept {
  return fails(kRename) ? -1 : next<int(int, const char*, int, const char*)>("renameat")(a, from, b, to);
}
int renameat2(int a, const char* from, int b, const char* to, unsigned flags) noexcept {
  return fails(kRename) ? -1
                        : next<int(int, const char*, int, const char*, unsigned)>("renameat2")(a, from, b, to, flags);
}

ssize_t write(int fd, const void* data, size_t size) {
  return fails(kWrite, fd) ? -1 : next<ssize_t(int, const void*, size_t)>("write")(fd, data, size);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  return fails(kWrite, fd) ? -1 : next<ssize_t(int, const void*, size_t, off_t)>("pwrite")(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  return fails(kWrite, fd) ? -1 : next<ssize_t(int, const void*, size_t, off64_t)>("pwrite64")(fd, data, size, at);
}
ssize_t writev(int fd, const iovec* parts, int count) {
  return fails(kWrite, fd) ? -1 : next<ssize_t(int, const iovec*, int)>("writev")(fd, parts, count);
}

void* mmap(void* address, size_t size, int protection, int flags, int fd, off_t at) noexcept {
  if (fails(kMmap)) return MAP_FAILED;
  return next<void*(void*, size_t, int, int, int, off_t)>("mmap")(address, size, protection, flags, fd, at);
}
void* mmap64(void* address, size_t size, int protection, int flags, int fd, off64_t at) noexcept {
  if (fails(kMmap)) return MAP_FAILED;
  return next<void*(void*, size_t, int, int, int, off64_t)>("mmap64")(address, size, protection, flags, fd, at);
}

pid_t fork() noexcept { return fails(kFork) ? -1 : next<pid_t()>("fork")(); }
/// clone3(2) has no function of its own.
long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  std::array<long, 6> a{};
  for (long& one : a) one = va_arg(list, long);
  va_end(list);
  if ((number == SYS_clone3 || number == SYS_clone) && fails(kFork)) return -1;
  static const auto real = next<long(long, ...)>("syscall");
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int accept(int fd, sockaddr* address, socklen_t* size) {
  return fails(kAccept) ? -1 : next<int(int, sockaddr*, socklen_t*)>("accept")(fd, address, size);
}
int accept4(int fd, sockaddr* address, socklen_t* size, int flags) {
  return fails(kAccept) ? -1 : next<int(int, sockaddr*, socklen_t*, int)>("accept4")(fd, address, size, flags);
}

}  // extern "C"

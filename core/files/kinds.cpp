#include "core/files/kinds.h"

#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <utility>

#include "core/files/file_locks.h"

namespace migrate {
namespace {

struct Unsupported {
  std::string_view prefix;  ///< of the link
  std::string_view what;
  std::string_view remedy;
};

constexpr std::array kUnsupported{
    Unsupported{"anon_inode:inotify", "an inotify instance", "close it first"},
    Unsupported{"anon_inode:[fanotify]", "a fanotify group", "close it first"},
    Unsupported{"anon_inode:[io_uring]", "an io_uring instance", "start the program with io_uring turned off"},
    Unsupported{"anon_inode:[userfaultfd]", "a userfaultfd", "close it first"},
    Unsupported{"anon_inode:[perf_event]", "a perf event", "stop profiling it first"},
    Unsupported{"anon_inode:bpf", "a BPF object", "close it first"},
    Unsupported{"anon_inode:[pidfd]", "a pidfd", "close it first"},
    Unsupported{"pidfd:", "a pidfd", "close it first"},
    Unsupported{"anon_inode:kvm", "a KVM virtual machine", "use the virtual machine's own migration"},
    Unsupported{"anon_inode:", "a kernel object", "close it first"},
    Unsupported{"mnt:", "a mount namespace file", "close it first"},
    Unsupported{"net:", "a network namespace file", "close it first"},
    Unsupported{"", "a file of a kind that cannot be moved", "close it first"},
};

[[noreturn]] void refuse_by_link(const OpenFile& file) {
  for (const Unsupported& u : kUnsupported)
    if (file.link.starts_with(u.prefix))
      throw Refusal(file.who() + ", " + std::string(u.what) + " (" + file.link + ")", u.remedy);
  std::abort();  // the last prefix is empty
}

FileKind classify_socket(const OpenFile& file) {
  int domain = 0;
  socklen_t length = sizeof domain;
  check(::getsockopt(file.ours.get(), SOL_SOCKET, SO_DOMAIN, &domain, &length), "ask the domain of socket", file.who());
  if (domain == AF_UNIX) return FileKind::unix_socket;
  if (domain == AF_INET || domain == AF_INET6) return FileKind::inet_socket;
  std::string what = "a socket of family " + std::to_string(domain);
  if (domain == AF_NETLINK) what = "a netlink socket";
  if (domain == AF_PACKET) what = "a packet socket";
  if (domain == AF_VSOCK) what = "a vsock socket";
  throw Refusal(file.who() + ", " + what, "close it first");
}

}  // namespace

bool stateless_device(uint32_t major, uint32_t minor) {
  // Documentation/admin-guide/devices.txt: null, zero, full, random, urandom
  return major == 1 && (minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9);
}

bool terminal_device(uint32_t major, uint32_t) { return major == 4 || major == 5 || (major >= 136 && major <= 143); }

KindTable::KindTable() {
  const Fd probe(check(::memfd_create("migrate-probe", MFD_CLOEXEC), "create", "a memfd"));
  memfd_fs_ = inode_of(stat_cached(probe.get(), "", AT_EMPTY_PATH, "a memfd"));
}

FileKind KindTable::classify(const OpenFile& file, const FileDumpOptions& options) const {
  static constexpr std::array<std::pair<std::string_view, FileKind>, 4> kAnonymous{{
      {"anon_inode:[eventfd]", FileKind::eventfd},
      {"anon_inode:[eventpoll]", FileKind::epoll},
      {"anon_inode:[timerfd]", FileKind::timerfd},
      {"anon_inode:[signalfd]", FileKind::signalfd},
  }};
  if (file.link.starts_with("/")) return classify_path(file, options);
  for (const auto& [name, kind] : kAnonymous)
    if (file.link == name) return kind;
  if (file.link.starts_with("pipe:[")) return FileKind::pipe;
  if (file.link.starts_with("socket:[")) return classify_socket(file);
  refuse_by_link(file);
}

FileKind KindTable::classify_path(const OpenFile& file, const FileDumpOptions& options) const {
  check_file_locks(file, options);
  switch (file.type()) {
    case S_IFREG: {
      const bool internal = file.st.stx_dev_major == memfd_fs_.major && file.st.stx_dev_minor == memfd_fs_.minor;
      if (internal && file.link.starts_with("/memfd:")) return FileKind::memfd;
      if (internal || file.link.starts_with("/anon_hugepage"))
        throw Refusal(file.who() + ", a kernel-internal memory object (" + file.link + ")", "close it first");
      if (file.link.starts_with("/memfd:") && file.st.stx_nlink == 0)
        throw Refusal(file.who() + ", a memfd of huge pages", "use ordinary pages");
      return FileKind::regular;
    }
    case S_IFDIR:
      return FileKind::regular;
    case S_IFIFO:
      return FileKind::fifo;
    case S_IFCHR:
      if (stateless_device(file.st.stx_rdev_major, file.st.stx_rdev_minor)) return FileKind::regular;
      if (terminal_device(file.st.stx_rdev_major, file.st.stx_rdev_minor)) {
        if (options.shell_job && options.terminals) return FileKind::regular;
        throw Refusal(file.who() + ", the terminal " + file.link,
                      options.terminals ? "redirect it to a file, or use --shell-job"
                                        : "redirect it to a file: a terminal stays where it is");
      }
      throw Refusal(file.who() + ", the device " + file.link, "close it first");
    default:
      throw Refusal(file.who() + ", " + file.link + ", a file of a kind that cannot be moved", "close it first");
  }
}

}  // namespace migrate

#include "core/files/kinds.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "core/files/devices.h"
#include "core/files/message_queue.h"

namespace migrate {

extern const Kind kRegular, kPipe, kFifo, kEventfd, kEpoll, kTimerfd, kSignalfd, kMemfd, kUnixSocket, kInetSocket,
    kNetlinkSocket, kPidfd, kInotify, kTerminal;

namespace {

// In this order a file is asked what it is, and kinds finish.
constexpr std::array kKinds{
    &kRegular, &kInetSocket, &kUnixSocket, &kNetlinkSocket, &kPipe,    &kFifo,     &kEventfd,
    &kTimerfd, &kSignalfd,   &kMemfd,      &kPidfd,         &kInotify, &kTerminal, &kEpoll,
};

struct Unsupported {
  std::string_view prefix;  ///< of the link
  std::string_view what;
  std::string_view remedy;
};

constexpr std::array kUnsupported{
    Unsupported{"anon_inode:[fanotify]", "a fanotify group", "close it first"},
    Unsupported{"anon_inode:[io_uring]", "an io_uring instance", "start the program with io_uring turned off"},
    Unsupported{"anon_inode:[userfaultfd]", "a userfaultfd", "close it first"},
    Unsupported{"anon_inode:[perf_event]", "a perf event", "stop profiling it first"},
    Unsupported{"anon_inode:bpf", "a BPF object", "close it first"},
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

[[noreturn]] void refuse_socket(const OpenFile& file) {
  std::string what = "a socket of family " + std::to_string(file.domain);
  if (file.domain == AF_PACKET) what = "a packet socket";
  if (file.domain == AF_VSOCK) what = "a vsock socket";
  throw Refusal(file.who() + ", " + what, "close it first");
}

[[noreturn]] void refuse_path(const OpenFile& file, const FileDumpOptions& options) {
  if (file.type() == S_IFREG) {
    if (is_message_queue(file))
      throw Refusal(file.who() + ", the POSIX message queue " + file.link, "close it first (mq_close)");
    if (file.link.starts_with("/memfd:")) throw Refusal(file.who() + ", a memfd of huge pages", "use ordinary pages");
    throw Refusal(file.who() + ", a kernel-internal memory object (" + file.link + ")", "close it first");
  }
  if (file.type() != S_IFCHR)
    throw Refusal(file.who() + ", " + file.link + ", a file of a kind that cannot be moved", "close it first");
  if (terminal_device(file.st.stx_rdev_major, file.st.stx_rdev_minor))
    throw Refusal(file.who() + ", the terminal " + file.link,
                  options.terminals ? "redirect it to a file, or use --shell-job"
                                    : "redirect it to a file: a terminal stays where it is");
  throw Refusal(file.who() + ", the device " + file.link, "close it first");
}

}  // namespace

std::span<const Kind* const> all_kinds() { return kKinds; }

const Kind* kind_of(img::fd_types type) {
  const auto it = std::ranges::find(kKinds, type, &Kind::type);
  return it == kKinds.end() ? nullptr : *it;
}

DumpKinds::DumpKinds(DumpContext& context) : options_(context.options), regular_(context), memfds_(context) {
  const DumpServices services{context, regular_, memfds_};
  kinds_.reserve(kKinds.size());
  for (const Kind* kind : kKinds) kinds_.push_back({kind, kind->dump(services)});
}

const DumpKinds::One& DumpKinds::of(const OpenFile& file) const {
  for (const One& one : kinds_)
    if (one.dump->matches(file)) return one;
  if (file.link.starts_with("/")) refuse_path(file, options_);
  if (file.domain >= 0) refuse_socket(file);
  refuse_by_link(file);
}

}  // namespace migrate

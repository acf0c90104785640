#include "migrate/cli/lazy_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

#include "core/base/error.h"
#include "core/base/types.h"

namespace migrate::cli {
namespace {

constexpr const char* kName = "lazy-pages.socket";
constexpr uint32_t kFinished = 0x52535446;
constexpr size_t kMostTasks = 100'000;

Fd stream_socket() { return Fd(check(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "make", "a Unix socket")); }

/// Through the folder's descriptor: the path may be longer than an address.
sockaddr_un address_in(int folder) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = fd_link(folder) + "/" + kName;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

int connect_in(int folder, int socket) {
  const sockaddr_un address = address_in(folder);
  return ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

std::string place(const std::string& folder) { return folder + "/" + kName; }

}  // namespace

LazyListener::LazyListener(const std::string& folder)
    : folder_(open_path(folder, O_RDONLY | O_DIRECTORY)), socket_(stream_socket()) {
  if (connect_in(folder_.get(), stream_socket().get()) == 0)
    throw Refusal("another lazy-pages daemon listens on " + place(folder), "give each a work directory of its own");
  ::unlinkat(folder_.get(), kName, 0);
  const sockaddr_un address = address_in(folder_.get());
  const mode_t before = ::umask(0177);
  const int bound = ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int error = errno;
  ::umask(before);
  if (bound != 0) throw Error("listen on", place(folder), error);
  check(::listen(socket_.get(), 4), "listen on", place(folder));
}

LazyListener::~LazyListener() {
  if (folder_) ::unlinkat(folder_.get(), kName, 0);
}

Fd LazyListener::accept() const {
  for (;;) {
    Fd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!peer) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      throw Error("accept", "a restore", errno);
    }
    ucred who{};
    socklen_t size = sizeof who;
    check(::getsockopt(peer.get(), SOL_SOCKET, SO_PEERCRED, &who, &size), "ask", "who connects");
    if (who.uid != 0 && who.uid != ::geteuid()) continue;
    // Whoever only asks whether we live hangs up at once.
    char first = 0;
    if (::recv(peer.get(), &first, 1, MSG_PEEK) == 1) return peer;
  }
}

std::vector<LazyTask> LazyListener::receive() {
  const Fd peer = accept();
  std::vector<LazyTask> tasks;
  for (;;) {
    uint32_t word = 0;
    if (read_full(peer.get(), std::as_writable_bytes(std::span(&word, 1)), "a restore") != sizeof word)
      throw Error("the restore ended before it had handed over all tasks");
    if (word == kFinished) return tasks;
    const auto pid = static_cast<pid_t>(static_cast<int32_t>(word));
    if (pid < 0) continue;  // a zombie
    if (pid > kMaxPid || tasks.size() == kMostTasks) throw Corrupt("the restore", "it hands over no task");
    std::vector<std::byte> bytes;
    std::vector<Fd> fds;
    if (!recv_fds(peer.get(), bytes, fds, 1) || fds.size() != 1)
      throw Corrupt("the restore", "task " + std::to_string(pid) + " comes without its userfaultfd");
    tasks.push_back({pid, std::move(fds[0])});
  }
}

LazyConnection::LazyConnection(const std::string& folder) : socket_(stream_socket()) {
  const Fd opened = open_path(folder, O_RDONLY | O_DIRECTORY);
  if (connect_in(opened.get(), socket_.get()) != 0)
    throw Refusal("no lazy-pages daemon listens on " + place(folder) + ": " + std::strerror(errno),
                  "start `migrate lazy-pages` with the same work directory first");
}

void LazyConnection::send(pid_t pid, int userfaultfd) {
  const int32_t number = pid;
  send_fds(socket_.get(), std::as_bytes(std::span(&number, 1)), {});
  const std::array<int, 1> fds{userfaultfd};
  send_fds(socket_.get(), std::as_bytes(std::span("\0", 1)), fds);
}

void LazyConnection::finish() { send_fds(socket_.get(), std::as_bytes(std::span(&kFinished, 1)), {}); }

}  // namespace migrate::cli

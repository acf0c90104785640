#include "migrate/cli/lazy_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>

#include "core/base/error.h"
#include "core/base/types.h"

namespace migrate::cli {
namespace {

constexpr const char* kName = "lazy-pages.socket";
constexpr uint32_t kFinished = 0x52535446;
constexpr uint8_t kHello = 1, kGo = 2, kRuns = 3;
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

void send_task(int socket, pid_t pid, int fd) {
  const int32_t number = pid;
  send_fds(socket, std::as_bytes(std::span(&number, 1)), {});
  const std::array<int, 1> fds{fd};
  send_fds(socket, std::as_bytes(std::span("\0", 1)), fds);
}

/// Tasks with a descriptor each, until they are finished; false: the restore hung up.
bool receive_tasks(int socket, const std::function<void(pid_t, Fd)>& take) {
  for (;;) {
    uint32_t word = 0;
    const ssize_t n = ::recv(socket, &word, sizeof word, MSG_WAITALL);
    if (n < 0 && errno == EINTR) continue;
    // A restore that has left something of ours unread (it is not ours) hangs up so.
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return false;
    if (n != sizeof word) throw Error("hear", "a restore", n < 0 ? errno : EBADMSG);
    if (word == kFinished) return true;
    const auto pid = static_cast<pid_t>(static_cast<int32_t>(word));
    if (pid < 0) continue;  // a zombie
    if (pid == 0 || pid > kMaxPid) throw Corrupt("the restore", "it hands over no task");
    std::vector<std::byte> bytes;
    std::vector<Fd> fds;
    if (!recv_fds(socket, bytes, fds, 1) || fds.size() != 1)
      throw Corrupt("the restore", "task " + std::to_string(pid) + " comes without its descriptor");
    take(pid, std::move(fds[0]));
  }
}

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

LazyListener::LazyListener(const std::string& folder, Fd socket)
    : folder_(open_path(folder, O_RDONLY | O_DIRECTORY)), socket_(std::move(socket)) {}

LazyListener::~LazyListener() {
  if (folder_) ::unlinkat(folder_.get(), kName, 0);
}

/// None: it was nobody who restores.
Fd LazyListener::accept() const {
  Fd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!peer) {
    if (errno == EINTR || errno == ECONNABORTED) return {};
    throw Error("accept", "a restore", errno);
  }
  ucred who{};
  socklen_t size = sizeof who;
  check(::getsockopt(peer.get(), SOL_SOCKET, SO_PEERCRED, &who, &size), "ask", "who connects");
  if (who.uid != 0 && who.uid != ::geteuid()) return {};
  ::send(peer.get(), &kHello, sizeof kHello, MSG_NOSIGNAL | MSG_DONTWAIT);
  // Whoever only asks whether we live hangs up at once.
  char first = 0;
  if (::recv(peer.get(), &first, 1, MSG_PEEK) == 1) return peer;
  return {};
}

std::optional<LazyRestore> LazyListener::receive(int over) {
  for (;;) {
    std::array<pollfd, 2> waited{pollfd{socket_.get(), POLLIN, 0}, pollfd{over, POLLIN, 0}};
    ::poll(waited.data(), waited.size(), -1);
    if (waited[1].revents != 0) return {};
    if (waited[0].revents == 0) continue;
    if (auto restore = receive_now()) return restore;
  }
}

std::optional<LazyRestore> LazyListener::receive_now() {
  Fd peer = accept();
  if (!peer) return {};
  std::vector<LazyTask> tasks;
  if (!receive_tasks(peer.get(), [&](pid_t pid, Fd fd) {
        if (tasks.size() == kMostTasks) throw Corrupt("the restore", "it hands over too many tasks");
        tasks.push_back({pid, std::move(fd), Fd()});
      }))
    throw Error("the restore ended before it had handed over all tasks");
  const bool ours = receive_tasks(peer.get(), [&](pid_t pid, Fd fd) {
    const auto task = std::ranges::find(tasks, pid, &LazyTask::pid);
    if (task == tasks.end()) throw Corrupt("the restore", "it hands over the process of a task that it does not have");
    task->process = std::move(fd);
  });
  return LazyRestore(std::move(tasks), std::move(peer), ours);
}

void LazyRestore::go() {
  if (state_ == State::ready && ::send(peer_.get(), &kGo, sizeof kGo, MSG_NOSIGNAL) != sizeof kGo)
    throw Error("the restore has ended before its tree ran");
}

LazyRestore::State LazyRestore::state(bool wait) {
  while (state_ == State::ready) {
    uint8_t word = 0;
    // It stays there, for who goes on when this process is killed.
    const ssize_t n = ::recv(peer_.get(), &word, sizeof word, MSG_PEEK | (wait ? 0 : MSG_DONTWAIT));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    state_ = n == sizeof word && word == kRuns ? State::runs : State::gone;
  }
  return state_;
}

LazyConnection::LazyConnection(const std::string& folder) : socket_(stream_socket()) {
  const Fd opened = open_path(folder, O_RDONLY | O_DIRECTORY);
  if (connect_in(opened.get(), socket_.get()) != 0)
    throw Refusal("no lazy-pages daemon listens on " + place(folder) + ": " + std::strerror(errno),
                  "start `migrate lazy-pages` with the same work directory first");
}

void LazyConnection::send(pid_t pid, int userfaultfd, Fd process) {
  send_task(socket_.get(), pid, userfaultfd);
  processes_.emplace_back(pid, std::move(process));
}

void LazyConnection::finish() {
  const auto hear = [&] {
    uint8_t word = 0;
    return read_full(socket_.get(), std::as_writable_bytes(std::span(&word, 1)), "the lazy-pages daemon") == 1 ? word
                                                                                                               : 0;
  };
  send_fds(socket_.get(), std::as_bytes(std::span(&kFinished, 1)), {});
  // Hanging up in order is the answer of CRIU's daemon: a dead one of any kind would not have read all that was sent.
  const uint8_t hello = hear();
  if (hello == 0) return;
  if (hello != kHello) throw Corrupt("the lazy-pages daemon", "it says something that is not known");
  for (const auto& [pid, process] : processes_) send_task(socket_.get(), pid, process.get());
  send_fds(socket_.get(), std::as_bytes(std::span(&kFinished, 1)), {});
  if (hear() != kGo) throw Error("the lazy-pages daemon has given up before the tree could run; see its log");
}

void LazyConnection::tell_runs() noexcept { ::send(socket_.get(), &kRuns, sizeof kRuns, MSG_NOSIGNAL); }

}  // namespace migrate::cli

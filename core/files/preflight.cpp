// What can be refused while the tree still runs. All of it is checked again when the tree is stopped; here a doubt is
// no refusal, since tasks come and go and close what was just seen.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <set>

#include "core/base/refusals.h"
#include "core/files/inet_socket.h"
#include "core/files/kinds.h"
#include "core/files/lasting_state.h"
#include "core/files/regular.h"
#include "core/files/socket_options.h"
#include "core/files/unix_file.h"
#include "core/files/unix_socket.h"

namespace migrate {
namespace {

class Preflight {
 public:
  Preflight(const std::vector<ProcDir>& tasks, const FileDumpOptions& options) : options_(options) {
    for (const ProcDir& task : tasks) pids_.insert(task.pid());
  }

  void look_at(const ProcDir& task) {
    const auto pidfd = open_pidfd(task.pid());
    if (!pidfd) return;
    try {
      netns_ = stat_cached(task.fd(), "ns/net", 0, "a network namespace").stx_ino;
      links_.clear();
      epolls_.clear();
      for (const int fd : task.descriptors()) refusals_.ask([&] { look_at_if_there(task, fd, pidfd->get()); });
      lasting_.see_epolls(task, links_, epolls_);
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;  // it ended meanwhile
    }
  }

  void finish() {
    for (const auto& named : pipes_) {
      const auto& link = named.first;
      const Pipe& pipe = named.second;
      if ((pipe.reader && pipe.writer) || !pipe.other_side) continue;
      refusals_.ask([&] {
        const std::optional<std::string> holder = outside_holder(link);
        if (holder) throw pipe_to_outside(pipe.who, pipe.reader, *holder);
      });
    }
    for (const auto& named : sockets_) {
      const auto& socket = named.second;
      if (socket.info.peer != 0 && !sockets_.contains(socket.info.peer)) refusals_.ask([&] { check_peer(socket); });
    }
    refusals_.ask([&] { lasting_.finish(); });
    refusals_.demand_none();
  }

 private:
  struct Pipe {
    bool reader = false, writer = false, other_side = false;
    std::string who;
  };
  struct Socket {
    UnixSocketInfo info;
    std::string who;
    uint64_t netns;
  };

  void look_at_if_there(const ProcDir& task, int fd, int pidfd) {
    try {
      look_at(task, fd, pidfd);
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;  // closed meanwhile
    }
  }

  void look_at(const ProcDir& task, int fd, int pidfd) {
    OpenFile file;
    file.proc = &task;
    file.fd = fd;
    const std::string number = std::to_string(fd);
    file.link = links_[fd] = task.link("fd/" + number);
    const bool socket = file.link.starts_with("socket:");
    if (file.link.starts_with("/") || file.link.starts_with("pipe:")) {
      file.info = parse_fdinfo(task.read("fdinfo/" + number));
      file.st = stat_cached(task.fd(), "fd/" + number, 0, file.who());
    }
    const bool path_only = (file.info.flags & O_PATH) != 0;
    if (socket || (file.type() == S_IFIFO && !path_only)) file.ours = get_remote_fd(pidfd, fd);
    if (socket) file.st = stat_cached(file.ours.get(), "", AT_EMPTY_PATH, file.who());
    switch (kinds_.classify(file, options_)) {
      case FileKind::regular:
        check_ghost(file, options_);
        return check_name(file, options_);
      case FileKind::pipe:
      case FileKind::fifo:
        return see_pipe(file);
      case FileKind::inet_socket:
        check_filter(file.ours.get(), file.who());
        return check_inet_socket(file, options_);
      case FileKind::unix_socket:
        check_filter(file.ours.get(), file.who());
        return see_socket(file);
      case FileKind::epoll:
        epolls_.push_back(fd);
        return;
      default:
        return;
    }
  }

  void see_pipe(const OpenFile& file) {
    if (!file.ours) return;
    const auto [it, fresh] = pipes_.try_emplace(file.link);
    Pipe& pipe = it->second;
    if (fresh) {
      pollfd p{file.ours.get(), POLLIN | POLLOUT, 0};
      check(::poll(&p, 1, 0), "poll", "a pipe");
      // As in PipeDumper: what a single kind of end tells about the other.
      pipe.other_side = (p.revents & (file.access() == O_RDONLY ? POLLHUP : POLLERR)) == 0;
      pipe.who = file.who();
    }
    pipe.reader |= file.access() != O_WRONLY;
    pipe.writer |= file.access() != O_RDONLY;
  }

  void see_socket(const OpenFile& file) {
    auto all = unix_.find(netns_);
    if (all == unix_.end()) all = unix_.emplace(netns_, list_unix_sockets(file.proc)).first;
    const auto it = all->second.find(static_cast<uint32_t>(file.st.stx_ino));
    if (it == all->second.end()) return;
    if (has_unix_file(it->second)) find_unix_file(file, it->second);
    if (sockets_.try_emplace(it->first, Socket{it->second, file.who(), netns_}).second)
      lasting_.see_socket(file, it->second, netns_);
  }

  void check_peer(const Socket& socket) const {
    const auto& all = unix_.at(socket.netns);
    const auto peer = all.find(socket.info.peer);
    // Made after the list was read, or both ends belong to a task that just came.
    if (peer == all.end()) return;
    const bool named = socket.info.type == SOCK_DGRAM && !peer->second.name.empty();
    if (named && options_.ext_unix_sk) return;
    const std::string link = "socket:[" + std::to_string(socket.info.peer) + "]";
    if (const auto holder = outside_holder(link))
      throw Refusal(socket.who + ", a Unix socket connected to " + *holder + " outside of the tree",
                    named && options_.advise_options
                        ? "close it first, or use --ext-unix-sk to connect it again by name"
                        : "close it first");
  }

  static Refusal pipe_to_outside(const std::string& who, bool reader, const std::string& holder) {
    return {who + (reader ? ", the read end of a pipe whose write end" : ", the write end of a pipe whose read end") +
                " is held by " + holder + " outside of the tree",
            "redirect it to a file or /dev/null, or move the other process along"};
  }

  /// Children that came since the tree was listed belong to it.
  bool inside(pid_t pid) const {
    for (int depth = 0; pid > 1 && depth < 64; ++depth) {
      if (pids_.contains(pid)) return true;
      pid = ProcDir(pid).stat().ppid;
    }
    return false;
  }

  /// "process 42 (cat)", if a process outside of the tree has a descriptor with that link.
  std::optional<std::string> outside_holder(const std::string& link) const {
    for (const int pid : numeric_entries(AT_FDCWD, "/proc")) {
      if (pids_.contains(pid) || pid == ::getpid()) continue;
      try {
        const ProcDir other(pid);
        for (const int fd : other.descriptors())
          if (other.link("fd/" + std::to_string(fd)) == link && !inside(pid))
            return "process " + std::to_string(pid) + " (" + other.stat().comm + ")";
      } catch (const Error& e) {
        if (!cannot_be_seen(e)) throw;
        continue;  // it ended, or closed something, meanwhile
      }
    }
    return std::nullopt;
  }

  const FileDumpOptions& options_;
  const KindTable kinds_;
  std::set<pid_t> pids_;
  std::map<std::string, Pipe> pipes_;                            ///< by link
  std::map<uint32_t, Socket> sockets_;                           ///< by inode
  std::map<uint64_t, std::map<uint32_t, UnixSocketInfo>> unix_;  ///< by network namespace
  Refusals refusals_;
  LastingStates lasting_;
  // Of the task looked at:
  uint64_t netns_ = 0;
  std::map<int, std::string> links_;  ///< of its descriptors
  std::vector<int> epolls_;
};

}  // namespace

void FileDumper::preflight(const std::vector<ProcDir>& tasks, const FileDumpOptions& options, Logger&) {
  Preflight preflight(tasks, options);
  for (const ProcDir& task : tasks) preflight.look_at(task);
  preflight.finish();
}

}  // namespace migrate

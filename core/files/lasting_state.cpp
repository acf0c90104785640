#include "core/files/lasting_state.h"

#include <linux/kcmp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <set>

#include "core/base/refusals.h"
#include "core/files/inotify.h"
#include "core/files/unix_queue.h"
#include "core/files/unix_socket.h"
#include "core/files/waiting_descriptor.h"

namespace migrate {
namespace {

/// More are left to the stop.
constexpr size_t kMostDoubts = 16;
constexpr int kLooks = 40;
constexpr timespec kBetween{0, 5'000'000};

bool has_descriptors(const ProcDir& task, int fd) {
  const FdInfo info = parse_fdinfo(task.read("fdinfo/" + std::to_string(fd)));
  const auto count = fdinfo_field(info, "scm_fds:");  // a view
  return count && *count != "0";
}

bool same_file(const Holder& a, const Holder& b) {
  return ::syscall(SYS_kcmp, a.pid, b.pid, KCMP_FILE, a.fd, b.fd) == 0;
}

/// Whether the link of a number tells, without asking the kernel, that it leads to what is watched.
bool seems_open(const ProcDir& task, const img::eventpoll_tfd_entry& target) {
  std::string to;
  try {
    to = task.link("fd/" + std::to_string(target.tfd()));
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;
    return false;
  }
  for (const std::string kind : {"socket:[", "pipe:["})
    if (to.starts_with(kind)) return to == kind + std::to_string(target.inode()) + "]";
  // These have one inode together, and whether it is the same the kernel tells only by a walk of all that is watched.
  return to.starts_with("anon_inode:");
}

}  // namespace

bool LastingStates::full() const { return doubts_.size() >= kMostDoubts; }

void LastingStates::doubt(Look look) {
  if (!full()) doubts_.push_back(std::move(look));
}

bool LastingStates::waits_well(uint32_t client, const Lists::Sockets& all) const {
  const auto it = all.find(client);
  return it != all.end() && it->second.unread == 0 && unix_.contains(client);
}

bool LastingStates::waits_inside(uint32_t client, const Lists::Sockets& all) const {
  return std::ranges::any_of(unix_, [&](uint32_t ino) {
    const auto listener = all.find(ino);
    return listener != all.end() &&
           std::ranges::find(listener->second.waiting, client) != listener->second.waiting.end();
  });
}

bool LastingStates::some_task_has(const OpenFile& file) const {
  const Holder ours{0, ::getpid(), file.ours.get()};
  for (const ProcDir& task : tasks_) try {
      for (const int fd : task.descriptors())
        if (parse_fdinfo(task.read("fdinfo/" + std::to_string(fd))).ino == file.info.ino &&
            same_file({0, task.pid(), fd}, ours))
          return true;
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;
    }
  return false;
}

std::optional<Refusal> LastingStates::refused_on_its_way(const ProcDir& task, int fd, const std::string& who) const {
  const auto pidfd = open_pidfd(task.pid());
  if (!pidfd || !has_descriptors(task, fd)) return std::nullopt;
  for (Fd& one : first_descriptors(get_remote_fd(pidfd->get(), fd).get())) {
    const OpenFile file = waiting_file(task, std::move(one), who);
    try {
      check_waiting_(file);
    } catch (const Refusal& e) {
      if (!some_task_has(file)) return e;
    }
  }
  return std::nullopt;
}

void LastingStates::see_socket(const OpenFile& file, const UnixSocketInfo& info, uint64_t netns) {
  unix_.insert(info.ino);
  const auto now = [task = file.proc, netns, ino = info.ino](Lists& lists) -> const UnixSocketInfo* {
    auto list = lists.sockets.find(netns);
    if (list == lists.sockets.end()) list = lists.sockets.emplace(netns, list_unix_sockets(task)).first;
    const auto it = list->second.find(ino);
    return it == list->second.end() ? nullptr : &it->second;
  };
  // A message of a stream is not empty.
  const bool filled = info.state != kSocketListen && (info.queued != 0 || info.type != SOCK_STREAM);
  if (filled && refused_on_its_way(*file.proc, file.fd, file.who()))
    doubt([this, task = file.proc, fd = file.fd, who = file.who()](Lists&) {
      return refused_on_its_way(*task, fd, who);
    });
  if (!info.waiting.empty())
    doubt([this, now, netns, who = file.who(),
           first = std::set(info.waiting.begin(), info.waiting.end())](Lists& lists) mutable -> std::optional<Refusal> {
      const UnixSocketInfo* socket = now(lists);
      if (socket == nullptr) return std::nullopt;
      // A server may have some at any time: only those count that were there from the beginning.
      const std::set<uint32_t> waiting(socket->waiting.begin(), socket->waiting.end());
      std::erase_if(first,
                    [&](uint32_t ino) { return !waiting.contains(ino) || waits_well(ino, lists.sockets.at(netns)); });
      if (first.empty()) return std::nullopt;
      return connections_not_accepted(who, *socket);
    });
  if (waits_to_be_accepted(info))
    doubt([this, now, netns, who = file.who()](Lists& lists) -> std::optional<Refusal> {
      const UnixSocketInfo* socket = now(lists);
      if (socket == nullptr || !waits_to_be_accepted(*socket)) return std::nullopt;
      const Lists::Sockets& all = lists.sockets.at(netns);
      if (waits_well(socket->ino, all) && waits_inside(socket->ino, all)) return std::nullopt;
      return not_accepted(who);
    });
}

/// By any task that has that epoll.
bool LastingStates::watched(const Holder& holder, int number) const {
  const auto leads_there = [number](const Holder& h) { return is_epoll_target({h, number, 0}, h.pid, number); };
  if (leads_there(holder)) return true;
  return std::ranges::any_of(epolls_, [&](const Holder& other) {
    return other.pid != holder.pid && same_file(holder, other) && leads_there(other);
  });
}

/// Whether a task has under any number what is watched there.
bool LastingStates::open_elsewhere(const EpollSlot& slot, uint64_t inode) const {
  for (const ProcDir& task : tasks_) try {
      for (const int fd : task.descriptors())
        if (parse_fdinfo(task.read("fdinfo/" + std::to_string(fd))).ino == inode &&
            is_epoll_target(slot, task.pid(), fd))
          return true;
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;
    }
  return false;
}

void LastingStates::see_epolls(const ProcDir& task, std::span<const int> epolls) {
  for (const int fd : epolls) {
    const Holder holder{0, task.pid(), fd};
    epolls_.push_back(holder);
    const std::string file = "fdinfo/" + std::to_string(fd);
    std::map<uint32_t, uint32_t> seen;
    for (const img::eventpoll_tfd_entry& target : epoll_targets(task.read(file))) {
      if (full()) break;  // each question walks the interest list, which is locked meanwhile
      const uint32_t nth = seen[target.tfd()]++;
      const int number = static_cast<int>(target.tfd());
      if (nth == 0 && (seems_open(task, target) || is_epoll_target({holder, number, 0}, holder.pid, number))) continue;
      if (open_elsewhere({holder, number, nth}, target.inode())) continue;
      doubt([this, task = &task, file, holder, number, nth](Lists& lists) -> std::optional<Refusal> {
        if (nth == 0 && watched(holder, number)) return std::nullopt;
        const auto [there, fresh] = lists.epolls.try_emplace({holder.pid, holder.fd});
        if (fresh)
          for (const img::eventpoll_tfd_entry& t : epoll_targets(task->read(file))) ++there->second[t.tfd()];
        if (there->second[static_cast<uint32_t>(number)] <= nth) return std::nullopt;
        return watches_what_is_closed("task " + std::to_string(holder.pid) + " has fd " + std::to_string(holder.fd),
                                      number);
      });
    }
  }
}

void LastingStates::see_events(const OpenFile& file) {
  if (queued_events(file.ours.get(), file.who()) == 0) return;
  const auto ours = std::make_shared<const Fd>(file.ours.dup());
  doubt([ours, who = file.who()](Lists&) -> std::optional<Refusal> {
    if (queued_events(ours->get(), who) == 0) return std::nullopt;
    return events_not_read(who);
  });
}

void LastingStates::finish() {
  std::vector<Refusal> refused;
  for (int looks = 0; looks < kLooks && !doubts_.empty(); ++looks) {
    if (looks != 0) ::nanosleep(&kBetween, nullptr);
    refused.clear();
    Lists lists;
    std::erase_if(doubts_, [&](Look& look) {
      try {
        std::optional<Refusal> still = look(lists);
        if (still) refused.push_back(*still);
        return !still;
      } catch (const Error& e) {
        if (!descriptor_is_gone(e)) throw;
        return true;  // it ended, or closed it
      }
    });
  }
  if (!refused.empty()) throw AllRefusals(std::move(refused));
}

}  // namespace migrate

#include "core/files/epoll.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>

#include <cinttypes>
#include <cstdio>
#include <map>

namespace migrate {
namespace {

/// "tfd: 5 events: 19 data: 5 pos:0 ino:17 sdev:9" (fs/eventpoll.c, ep_show_fdinfo)
bool parse_target(const std::string& line, img::eventpoll_tfd_entry& out) {
  int tfd;
  unsigned events, dev;
  unsigned long long data, ino;
  long long pos;
  if (std::sscanf(line.c_str(), "tfd: %d events: %x data: %llx pos:%lli ino:%llx sdev:%x", &tfd, &events, &data, &pos,
                  &ino, &dev) != 6)
    return false;
  out.set_tfd(static_cast<uint32_t>(tfd));
  out.set_events(events);
  out.set_data(data);
  out.set_pos(static_cast<uint64_t>(pos));
  out.set_inode(ino);
  out.set_dev(dev);
  return true;
}

}  // namespace

bool is_epoll_target(const Holder& holder, int tfd, uint32_t nth) {
  const kcmp_epoll_slot slot{static_cast<uint32_t>(holder.fd), static_cast<uint32_t>(tfd), nth};
  return ::syscall(SYS_kcmp, holder.pid, holder.pid, KCMP_EPOLL_TFD, tfd, &slot) == 0;
}

std::vector<img::eventpoll_tfd_entry> epoll_targets(std::string_view fdinfo) {
  std::vector<img::eventpoll_tfd_entry> targets;
  while (!fdinfo.empty()) {
    const size_t end = std::min(fdinfo.find('\n'), fdinfo.size());
    const std::string line(fdinfo.substr(0, end));
    fdinfo.remove_prefix(std::min(end + 1, fdinfo.size()));
    if (!line.starts_with("tfd:")) continue;
    if (!parse_target(line, targets.emplace_back()))
      throw Corrupt("fdinfo of an epoll", "'" + line + "' is not understood");
  }
  return targets;
}

Refusal watches_what_is_closed(const std::string& who, int tfd) {
  return {who + ", an epoll that watches a file under number " + std::to_string(tfd) + ", where it is no longer open",
          "remove it from the epoll before closing it"};
}

void EpollDumper::collect(const OpenFile& file) {
  Epoll epoll{entry_of(img::fd_types::EVENTPOLL, file.id), file.who()};
  describe_common(file, *epoll.entry.mutable_epfd());
  for (img::eventpoll_tfd_entry& target : epoll_targets(file.info.text)) {
    target.set_id(file.id);
    *epoll.entry.mutable_epfd()->add_tfd() = std::move(target);
  }
  epolls_.push_back(std::move(epoll));
}

void EpollDumper::finish(const std::function<std::vector<Holder>(uint32_t)>& holders,
                         const std::function<bool(uint32_t, int)>& has, const std::function<bool(uint64_t)>& shared,
                         const std::function<uint64_t(uint32_t, int)>& inode) {
  for (Epoll& epoll : epolls_) {
    const std::vector<Holder> owners = holders(epoll.entry.id());
    std::map<int, uint32_t> nth;
    for (const img::eventpoll_tfd_entry& target : epoll.entry.epfd().tfd()) {
      const int tfd = static_cast<int>(target.tfd());
      const uint32_t n = nth[tfd]++;
      // The rule a restore follows too: the lowest table that has both the epoll and the number.
      const Holder* owner = nullptr;
      for (const Holder& h : owners)
        if (has(h.files_id, tfd) && (owner == nullptr || h.files_id < owner->files_id)) owner = &h;
      bool good = owner != nullptr && n == 0;
      // kcmp walks the whole interest list: asked only where the inode does not tell.
      if (good && (inode(owner->files_id, tfd) != target.inode() || shared(target.inode())))
        good = is_epoll_target(*owner, tfd, n);
      if (!good) throw watches_what_is_closed(epoll.who, tfd);
    }
    context_.emit(epoll.entry);
  }
}

}  // namespace migrate

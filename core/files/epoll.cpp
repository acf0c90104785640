#include "core/files/epoll.h"

#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include <cinttypes>
#include <cstdio>
#include <map>

#include "core/files/descriptor_tables.h"
#include "core/files/kind.h"
#include "core/files/lasting_state.h"
#include "ext/files.pb.h"

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

bool is_epoll_target(const EpollSlot& slot, pid_t pid, int fd) {
  const kcmp_epoll_slot there{static_cast<uint32_t>(slot.epoll.fd), static_cast<uint32_t>(slot.tfd), slot.nth};
  return ::syscall(SYS_kcmp, pid, slot.epoll.pid, KCMP_EPOLL_TFD, fd, &there) == 0;
}

std::map<std::pair<uint32_t, uint32_t>, uint32_t> read_watched_files(const ImageSet& images) {
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> files;
  auto reader = images.read(kWatchedFilesImage, kWatchedFilesMagic);
  ext::WatchedFile e;
  while (reader && reader->next(e)) files[{e.epoll(), e.entry()}] = e.file();
  return files;
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
  return {who + ", an epoll that watches a file under number " + std::to_string(tfd) +
              ", where it is no longer open, nor does a task have it under another",
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

void EpollDumper::finish(const DescriptorTables& tables) {
  for (Epoll& epoll : epolls_) {
    std::map<int, uint32_t> nth;
    for (int i = 0; i < epoll.entry.epfd().tfd_size(); ++i) {
      const img::eventpoll_tfd_entry& target = epoll.entry.epfd().tfd(i);
      const int tfd = static_cast<int>(target.tfd());
      const uint32_t n = nth[tfd]++;
      if (!under_its_number(tables, epoll.entry.id(), target, n))
        find_elsewhere(tables, epoll, static_cast<uint32_t>(i), n);
    }
    context_.emit(epoll.entry);
  }
}

bool EpollDumper::under_its_number(const DescriptorTables& tables, uint32_t epoll,
                                   const img::eventpoll_tfd_entry& target, uint32_t nth) {
  const int tfd = static_cast<int>(target.tfd());
  // The rule a restore follows too: the lowest table that has both the epoll and the number.
  const Holder* owner = nullptr;
  for (const Holder& h : tables.holders(epoll))
    if (tables.has(h.files_id, tfd) && (owner == nullptr || h.files_id < owner->files_id)) owner = &h;
  if (owner == nullptr || nth != 0) return false;
  // kcmp walks the whole interest list: asked only where the inode does not tell.
  if (tables.inode(owner->files_id, tfd) == target.inode() && !tables.several_have(target.inode())) return true;
  return is_epoll_target({*owner, tfd, nth}, owner->pid, tfd);
}

void EpollDumper::find_elsewhere(const DescriptorTables& tables, const Epoll& epoll, uint32_t entry, uint32_t nth) {
  const img::eventpoll_tfd_entry& target = epoll.entry.epfd().tfd(static_cast<int>(entry));
  const int tfd = static_cast<int>(target.tfd());
  const EpollSlot slot{tables.holders(epoll.entry.id()).front(), tfd, nth};
  const auto file = tables.find(target.inode(), [&](pid_t pid, int fd) { return is_epoll_target(slot, pid, fd); });
  if (!file) throw watches_what_is_closed(epoll.who, tfd);
  ext::WatchedFile watched;
  watched.set_epoll(epoll.entry.id());
  watched.set_entry(entry);
  watched.set_file(*file);
  context_.images.write(kWatchedFilesImage, kWatchedFilesMagic).entry(watched);
}

namespace {

class EpollDump : public DumpKind {
 public:
  explicit EpollDump(const DumpServices& services) : epolls_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.link == "anon_inode:[eventpoll]"; }
  void dump(const OpenFile& file) override { epolls_.collect(file); }
  void finish(const DescriptorTables& tables) override { epolls_.finish(tables); }
  bool preflight_opens(const OpenFile&) const override { return false; }
  void preflight(const OpenFile& file, Preflight&) override { seen_[file.proc].push_back(file.fd); }
  void preflight_end(Preflight& preflight) override {
    for (const auto& [task, epolls] : seen_) {
      try {
        preflight.lasting.see_epolls(*task, epolls);
      } catch (const Error& e) {
        if (!descriptor_is_gone(e)) throw;  // it ended meanwhile
      }
    }
  }

 private:
  EpollDumper epolls_;
  std::map<const ProcDir*, std::vector<int>> seen_;  ///< by task
};

/// Interest lists name numbers: the shells that have these fill them (install.cpp).
class EpollRestore : public RestoreKind {
 public:
  explicit EpollRestore(const RestoreServices&) {}
  Fd open(const UsedFile&) override { return Fd(migrate::check(::epoll_create1(EPOLL_CLOEXEC), "make", "an epoll")); }
};

}  // namespace

extern const Kind kEpoll{img::fd_types::EVENTPOLL, facts_of_part<&img::file_entry::has_epfd, &img::file_entry::epfd>,
                         make_dump<EpollDump>, make_restore<EpollRestore>};

}  // namespace migrate

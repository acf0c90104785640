#include "core/files/terminal_restore.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "core/files/open_flags.h"
#include "core/files/terminal_dump.h"
#include "core/files/terminal_queue.h"
#include "core/files/terminal_state.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

bool is_master(const img::tty_info_entry& info) { return info.rdev() == ::makedev(5, 2); }

/// What TIOCGPTPEER opens has no O_LARGEFILE but where that is asked for; the C library does not know it.
int slave_flags(uint32_t flags) {
  constexpr uint32_t kLargeFile = 0100000;
  return open_flags(flags) | static_cast<int>(flags & kLargeFile);
}

pid_t checked_pid(uint32_t pid) {
  if (pid > uint32_t{kMaxPid}) throw Corrupt("tty-info.img", "a session or group is out of range");
  return static_cast<pid_t>(pid);
}

std::map<uint32_t, ext::Terminal> read_extras(const ImageSet& images) {
  std::map<uint32_t, ext::Terminal> extras;
  auto reader = images.read(kTerminalsImage, kTerminalsMagic);
  for (ext::Terminal e; reader && reader->next(e); e.Clear())
    if (!extras.emplace(e.index(), e).second) throw Corrupt(kTerminalsImage, "a terminal stands twice");
  return extras;
}

}  // namespace

std::map<uint32_t, img::tty_info_entry> read_terminals(const ImageSet& images) {
  std::map<uint32_t, img::tty_info_entry> infos;
  auto reader = images.read("tty-info.img", magic::kTtyInfo);
  for (img::tty_info_entry e; reader && reader->next(e); e.Clear()) {
    check_terminal(e);
    if (!infos.emplace(e.id(), e).second) throw Corrupt("tty-info.img", "an id stands twice");
  }
  return infos;
}

std::vector<SessionTerminal> session_terminals(const ImageSet& images) {
  std::map<uint32_t, SessionTerminal> all;
  const std::map<uint32_t, ext::Terminal> extras = read_extras(images);
  for (const auto& [id, info] : read_terminals(images)) {
    if (!info.has_termios() || info.sid() == 0) continue;
    const uint32_t index = info.pty().index();
    const auto extra = extras.find(index);
    all[index] = {index, checked_pid(info.sid()), checked_pid(info.pgrp()),
                  extra != extras.end() && extra->second.no_group()};
  }
  std::vector<SessionTerminal> list;
  for (const auto& [index, terminal] : all) list.push_back(terminal);
  return list;
}

std::map<pid_t, uint32_t> controlling_terminals(const ImageSet& images) {
  std::map<pid_t, uint32_t> by_task;
  auto reader = images.read(kControllingImage, kControllingMagic);
  for (ext::ControllingTerminal e; reader && reader->next(e); e.Clear()) {
    if (e.index() >= kMaxTerminals) throw Corrupt(kControllingImage, "a terminal has an impossible number");
    by_task.emplace(checked_pid(e.pid()), e.index());
  }
  return by_task;
}

TerminalRestorer::TerminalRestorer(const RestoreServices& services)
    : services_(services),
      infos_(read_terminals(services.images)),
      extras_(read_extras(services.images)),
      pairs_(services.options.terminals != nullptr ? *services.options.terminals : own_) {}

const img::tty_info_entry& TerminalRestorer::info_of(const img::tty_file_entry& entry) const {
  const auto info = infos_.find(entry.tty_info_id());
  if (info == infos_.end()) throw Corrupt("files.img", "a terminal is not in tty-info.img");
  return info->second;
}

/// Those that are hung up first: their numbers may be others' by now, as at the source.
void TerminalRestorer::make_pairs() {
  made_ = true;
  std::set<uint32_t> living;
  for (const auto& [id, entry] : services_.entries) {
    if (entry.type() != img::fd_types::TTY) continue;
    const img::tty_info_entry& info = info_of(entry.tty());
    if (info.has_termios()) {
      living.insert(info.pty().index());
    } else {
      hung_up_[id] = TerminalPairs::hung_up(info.pty().index(), slave_flags(entry.tty().flags()));
    }
  }
  pairs_.make(living);
}

Fd TerminalRestorer::open_master(const UsedFile& file, const img::tty_info_entry& info) {
  const uint32_t index = info.pty().index();
  if (!masters_.emplace(index, info.id()).second) throw Corrupt("files.img", "a terminal has two masters");
  give_node(index, info, file.holders);
  return pairs_.get(index).master.dup();
}

Fd TerminalRestorer::open_slave_end(const UsedFile& file, const img::tty_info_entry& info) {
  const uint32_t index = info.pty().index();
  const int flags = slave_flags(file.entry.tty().flags());
  slaves_.insert(index);
  if (info.type() == img::TtyType::CTTY && services_.options.open_controlling)
    return services_.options.open_controlling(index, flags);
  return open_slave(pairs_.get(index).master.get(), flags, slave_path(index));
}

Fd TerminalRestorer::open(const UsedFile& file) {
  if (!made_) make_pairs();
  const img::tty_info_entry& info = info_of(file.entry.tty());
  if (const auto hung_up = hung_up_.find(file.id); hung_up != hung_up_.end()) return std::move(hung_up->second);
  return is_master(info) ? open_master(file, info) : open_slave_end(file, info);
}

/// The path is the kernel's, in the instance of devpts that the pair was made in.
void TerminalRestorer::give_node(uint32_t index, const img::tty_info_entry& info, const Holders& holders) {
  const std::string path = slave_path(index);
  const Fd node = open_path(path, O_PATH | O_NOFOLLOW);
  struct stat st {};
  check(::fstat(node.get(), &st), "stat", path);
  if (!S_ISCHR(st.st_mode)) throw Error("find the terminal", path, ENODEV);
  FileOwner owner{st.st_uid, st.st_gid, {}};
  if (info.has_uid() && info.has_gid()) owner = {info.uid(), info.gid(), {}};
  if (owner.uid == UINT32_MAX || owner.gid == UINT32_MAX) throw Corrupt("tty-info.img", "an owner is not possible");
  if (!services_.owners.allows(owner.uid, owner.gid)) owner = {holders.front().uid, st.st_gid, {}};
  check(::fchownat(node.get(), "", owner.uid, owner.gid, AT_EMPTY_PATH), "set the owner of", path);
  const auto extra = extras_.find(index);
  if (extra == extras_.end() || !extra->second.has_mode()) return;
  check(::chmod(fd_link(node.get()).c_str(), extra->second.mode() & 0777), "set the mode of", path);
}

/// What a slave that is closed had written can still be read.
void TerminalRestorer::fill(int master, const ext::Terminal& extra, const std::string& path) {
  TerminalQueue queue{{extra.lines().begin(), extra.lines().end()}, extra.rest(), extra.output()};
  if (queue.empty() && !extra.slave_closed()) return;
  const Fd slave = open_slave(master, O_RDWR | O_NONBLOCK, path);
  fill_queue(master, slave.get(), queue, path);
}

void TerminalRestorer::finish() {
  for (const uint32_t index : slaves_)
    if (!masters_.contains(index)) throw Corrupt("files.img", "a terminal has no master");
  for (const auto& [index, id] : masters_) {
    const img::tty_info_entry& info = infos_.at(id);
    const int master = pairs_.get(index).master.get();
    const std::string path = slave_path(index);
    set_modes(master, info, path);
    const auto extra = extras_.find(index);
    const auto slave = std::ranges::find_if(infos_, [&](const auto& other) {
      const img::tty_info_entry& e = other.second;
      return e.has_termios() && !is_master(e) && e.pty().index() == index && e.exclusive();
    });
    if (slave != infos_.end() && slaves_.contains(index)) set_exclusive(open_slave(master, O_RDWR, path).get(), path);
    if (extra != extras_.end()) fill(master, extra->second, path);
    set_switches(master, info, path);
  }
  own_.clear();
}

}  // namespace migrate

#include "core/files/terminal_dump.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include "core/files/paths.h"
#include "core/files/terminal_queue.h"
#include "core/files/terminal_state.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"

namespace migrate {
namespace {

constexpr uint32_t kSlaveMajor = 136, kLastSlaveMajor = 143, kAuxMajor = 5, kMasterMinor = 2;

/// The ids of what is known of a terminal: each end has its own, as in CRIU's images.
uint32_t info_id(uint32_t index, TerminalEnd end) {
  constexpr uint32_t kControlling = 1 << 20;
  return index << 1 | (end == TerminalEnd::master ? 1 : 0) | (end == TerminalEnd::controlling ? kControlling : 0);
}
constexpr uint32_t kHungUp = 1 << 21;

img::tty_info_entry info_of(uint32_t id, uint32_t index, dev_t device) {
  img::tty_info_entry info;
  info.set_id(id);
  info.set_type(img::TtyType::PTY);
  info.set_locked(false);
  info.set_exclusive(false);
  info.set_packet_mode(false);
  info.set_sid(0);
  info.set_pgrp(0);
  info.set_rdev(static_cast<uint32_t>(device));
  info.mutable_pty()->set_index(index);
  return info;
}

pid_t ask_pid(int master, unsigned long request) {
  pid_t pid = 0;
  return ::ioctl(master, request, &pid) == 0 ? pid : 0;
}

bool sees_hang_up(int master) {
  pollfd p{master, 0, 0};
  check(::poll(&p, 1, 0), "poll", "a terminal");
  return (p.revents & POLLHUP) != 0;
}

}  // namespace

std::optional<TerminalEnd> terminal_end(const OpenFile& file) {
  if (!file.link.starts_with("/") || file.type() != S_IFCHR || (file.info.flags & O_PATH) != 0) return std::nullopt;
  const uint32_t major = file.st.stx_rdev_major, minor = file.st.stx_rdev_minor;
  if (major >= kSlaveMajor && major <= kLastSlaveMajor) return TerminalEnd::slave;
  if (major != kAuxMajor) return std::nullopt;
  if (minor == kMasterMinor) return TerminalEnd::master;
  if (minor == 0) return TerminalEnd::controlling;
  return std::nullopt;
}

std::string terminal_name(const OpenFile& file) { return file.who() + ", the terminal " + file.link; }

Refusal master_is_outside(const std::string& name, const std::string& holder, const FileDumpOptions& options) {
  return {name + ", whose other end is " + (holder.empty() ? "" : "held by " + holder + ", ") + "outside of the tree",
          options.terminals ? "redirect it to a file, or use --shell-job"
                            : "redirect it to a file: that terminal stays where it is"};
}

Refusal output_is_stopped(const std::string& name) {
  return {name + ", whose output is stopped", "let it go on: type ^Q there, or let the program call tcflow(3)"};
}

std::optional<uint32_t> terminal_index(const OpenFile& file, TerminalEnd end) {
  constexpr const char* kClose = "close it first";
  if (end == TerminalEnd::master) {
    if (file.access() != O_RDWR) throw Refusal(terminal_name(file) + ", a master opened one way only", kClose);
    return index_of_master(file.ours.get(), file.who());
  }
  if (is_hung_up(file.ours.get())) return std::nullopt;
  // Then /proc/PID/fdinfo tells it of every descriptor, whether it is to be closed or not.
  if ((check(::fcntl(file.ours.get(), F_GETFL), "read the flags of", file.who()) & O_CLOEXEC) != 0)
    throw Refusal(terminal_name(file) + ", which was opened by TIOCGPTPEER with O_CLOEXEC", "open it by its name");
  const auto index = index_behind(file.ours.get());
  if (!index) throw Refusal(terminal_name(file) + ", which is no pseudo-terminal", "redirect it to a file");
  if (const std::string odd = what_is_odd(file.ours.get()); !odd.empty())
    throw Refusal(terminal_name(file) + odd, kClose);
  return index;
}

std::optional<struct statx> slave_node(const ProcDir& task, uint32_t index) {
  const Fd root = task.open("root", O_PATH | O_DIRECTORY);
  const Fd node = try_open_below(root.get(), slave_path(index), O_PATH | O_NOFOLLOW);
  if (!node) return std::nullopt;
  struct statx st = stat_opened(node.get(), slave_path(index));
  if (st.stx_rdev_major < kSlaveMajor || st.stx_rdev_major > kLastSlaveMajor || st.stx_rdev_minor != index)
    return std::nullopt;
  return st;
}

/// What it is called, which CRIU reads, too.
uint32_t TerminalDumper::add_path(const OpenFile& file) {
  const uint32_t id = context_.new_id();
  img::file_entry entry = entry_of(img::fd_types::REG, id);
  img::reg_file_entry& reg = *entry.mutable_reg();
  describe_common(file, reg);
  reg.set_id(id);
  reg.set_pos(0);
  reg.set_name(file.link);
  reg.set_mnt_id(-1);
  reg.set_mode(file.st.stx_mode);
  context_.emit(entry);
  return id;
}

/// Without modes, as CRIU tells it.
uint32_t TerminalDumper::add_hung_up(const OpenFile& file) {
  const dev_t device = ::makedev(file.st.stx_rdev_major, file.st.stx_rdev_minor);
  const uint32_t index = file.st.stx_rdev_major == kAuxMajor ? 0 : file.st.stx_rdev_minor;
  const img::tty_info_entry info = info_of(kHungUp + hung_up_++, index, device);
  emit_info(info);
  return info.id();
}

void TerminalDumper::emit_info(const img::tty_info_entry& info) {
  context_.images.write("tty-info.img", magic::kTtyInfo).entry(info);
}

void TerminalDumper::dump(const OpenFile& file, TerminalEnd end) {
  const auto index = terminal_index(file, end);
  img::file_entry entry = entry_of(img::fd_types::TTY, file.id);
  img::tty_file_entry& tty = *entry.mutable_tty();
  describe_common(file, tty);
  tty.set_tty_info_id(index ? info_id(*index, end) : add_hung_up(file));
  tty.set_regf_id(add_path(file));
  context_.emit(entry);
  if (!index) return;
  std::map<uint32_t, End>& ends = end == TerminalEnd::master  ? masters_
                                  : end == TerminalEnd::slave ? slaves_
                                                              : controlling_;
  const auto [it, fresh] = ends.try_emplace(*index);
  const bool other_instance =
      end == TerminalEnd::slave && !fresh && it->second.st.stx_dev_minor != file.st.stx_dev_minor;
  if ((end == TerminalEnd::master && !fresh) || other_instance)
    throw Refusal(terminal_name(file) + ", one of two with that number", "close one of them first");
  if (fresh) it->second = {terminal_name(file), file.proc, file.ours.dup(), file.st};
}

/// The other end of a master is what the master opens. One more description of a slave that is open changes nothing.
void TerminalDumper::check_pair(uint32_t index, const End& slave) const {
  const auto master = masters_.find(index);
  if (master == masters_.end()) throw master_is_outside(slave.name, "", context_.options);
  int locked = 0;
  const Fd& fd = master->second.fd;
  if (::ioctl(fd.get(), TIOCGPTLCK, &locked) != 0 || locked != 0) return;
  const Fd peer = open_slave(fd.get(), O_RDWR | O_NONBLOCK, slave.name);
  if (inode_of(stat_opened(peer.get(), slave.name)) != inode_of(slave.st))
    throw master_is_outside(slave.name, "", context_.options);
}

/// By a description of our own: what a slave was opened for is the task's matter.
void TerminalDumper::describe_queue(const End& master, bool locked, ext::Terminal& extra) {
  const int fd = master.fd.get();
  if (locked) lock_slave(fd, false, master.name);
  const Fd slave = open_slave(fd, O_RDWR | O_NONBLOCK, master.name);
  if (locked) lock_slave(fd, true, master.name);
  if (is_stopped(fd, slave.get())) throw output_is_stopped(master.name);
  const TerminalQueue queue = look_at_queue(fd, slave.get(), master.name);
  for (const std::string& line : queue.lines) extra.add_lines(line);
  extra.set_rest(queue.rest);
  extra.set_output(queue.output);
}

void TerminalDumper::describe(uint32_t index, const End& master) {
  const int fd = master.fd.get();
  img::tty_info_entry info = info_of(info_id(index, TerminalEnd::master), index, ::makedev(kAuxMajor, kMasterMinor));
  describe_terminal(fd, true, info);
  ext::Terminal extra;
  extra.set_index(index);
  if (const auto node = slave_node(*master.proc, index)) {
    info.set_uid(node->stx_uid);
    info.set_gid(node->stx_gid);
    extra.set_mode(node->stx_mode & 07777);
  }
  if (const pid_t session = ask_pid(fd, TIOCGSID); session != 0) {
    info.set_sid(static_cast<uint32_t>(context_.pid_in_tree(session)));
    const pid_t group = ask_pid(fd, TIOCGPGRP), there = group == 0 ? 0 : context_.pid_in_tree(group);
    info.set_pgrp(static_cast<uint32_t>(there));
    extra.set_no_group(there == 0);
  }
  const auto slave = slaves_.find(index);
  const auto by_session = controlling_.find(index);
  if (slave == slaves_.end() && by_session == controlling_.end() && sees_hang_up(fd)) extra.set_slave_closed(true);
  if (slave != slaves_.end() || by_session != controlling_.end() || extra.slave_closed())
    describe_queue(master, info.locked(), extra);
  emit_info(info);
  for (const auto& [end, opened] : {std::pair(TerminalEnd::slave, slave), {TerminalEnd::controlling, by_session}}) {
    if (opened == (end == TerminalEnd::slave ? slaves_ : controlling_).end()) continue;
    img::tty_info_entry other = info;
    other.set_id(info_id(index, end));
    other.set_rdev(
        static_cast<uint32_t>(::makedev(opened->second.st.stx_rdev_major, opened->second.st.stx_rdev_minor)));
    if (end == TerminalEnd::controlling) other.set_type(img::TtyType::CTTY);
    describe_terminal(opened->second.fd.get(), false, other);
    emit_info(other);
  }
  context_.images.write(kTerminalsImage, kTerminalsMagic).entry(extra);
}

void TerminalDumper::finish() {
  for (const auto& [index, slave] : slaves_) check_pair(index, slave);
  for (const auto& [index, end] : controlling_)
    if (!masters_.contains(index)) throw master_is_outside(end.name, "", context_.options);
  for (const auto& [index, master] : masters_) describe(index, master);
  // What is held here does not see its other end close.
  masters_.clear();
  slaves_.clear();
  controlling_.clear();
}

}  // namespace migrate

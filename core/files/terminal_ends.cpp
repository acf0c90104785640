#include "core/files/terminal_ends.h"

#include <linux/kcmp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <ctime>
#include <set>

#include "core/base/refusals.h"
#include "core/files/terminal_queue.h"
#include "core/files/terminal_state.h"

namespace migrate {
namespace {

bool is_master_link(const std::string& link) { return link == "/dev/ptmx" || link.ends_with("/pts/ptmx"); }

std::string name_of(const ProcDir& task) {
  return "process " + std::to_string(task.pid()) + " (" + task.stat().comm + ")";
}

/// Without opening it: from fdinfo (ptmx, Linux 4.9).
std::optional<uint64_t> index_told(const ProcDir& task, int fd) {
  const FdInfo info = parse_fdinfo(task.read("fdinfo/" + std::to_string(fd)));
  if (!fdinfo_field(info, "tty-index:")) return std::nullopt;
  return fdinfo_number(info, "tty-index:", 10);
}

}  // namespace

/// Empty if it is another by now. Not kept: whoever has a master sees when the last slave is closed, and the other way
/// round.
Fd TerminalEnds::Seen::get() const {
  if (proc->link("fd/" + std::to_string(fd)) != link) return {};
  const auto pidfd = open_pidfd(proc->pid());
  return pidfd ? get_remote_fd(pidfd->get(), fd) : Fd();
}

/// Its master may have been closed since, and it with it.
bool TerminalEnds::Seen::still_there() const {
  try {
    const Fd now = get();
    return now && !is_hung_up(now.get());
  } catch (const Error&) {
    return false;
  }
}

void TerminalEnds::see(const OpenFile& file, TerminalEnd end) {
  const auto index = terminal_index(file, end);
  if (!index) return;
  (end == TerminalEnd::master ? masters_ : slaves_)
      .try_emplace(*index, Seen{file.proc, file.fd, file.link, terminal_name(file)});
}

void TerminalEnds::demand_none_outside(const RunningTree& tree) const {
  if (masters_.empty() && slaves_.empty()) return;
  Refusals refusals;
  refusals.ask([&] { demand_masters(tree); });
  refusals.ask([&] { demand_no_guests(tree); });
  refusals.ask([&] { demand_flow(); });
  refusals.demand_none();
}

std::optional<std::string> TerminalEnds::other_master(const RunningTree& tree, uint32_t index) const {
  std::optional<std::string> found;
  tree.look_outside([&](const ProcDir& other, int fd, const std::string& link) {
    if (!found && is_master_link(link) && index_told(other, fd) == index) found = name_of(other);
  });
  return found;
}

void TerminalEnds::demand_masters(const RunningTree& tree) const {
  Refusals refusals;
  for (const auto& [index, slave] : slaves_) {
    if (masters_.contains(index) || !slave.still_there()) continue;
    refusals.ask([&, &index = index, &slave = slave] {
      throw master_is_outside(slave.name, other_master(tree, index).value_or(""), options_);
    });
  }
  refusals.demand_none();
}

/// For a moment any terminal may be stopped.
void TerminalEnds::demand_flow() const {
  constexpr int kLooks = 40;
  constexpr timespec kBetween{0, 5'000'000};
  std::set<uint32_t> stopped;
  for (const auto& [index, slave] : slaves_)
    if (masters_.contains(index)) stopped.insert(index);
  for (int looks = 0; looks < kLooks && !stopped.empty(); ++looks) {
    if (looks != 0) ::nanosleep(&kBetween, nullptr);
    std::erase_if(stopped, [&](uint32_t index) {
      try {
        const Fd master = masters_.at(index).get(), slave = slaves_.at(index).get();
        return !master || !slave || !is_stopped(master.get(), slave.get());
      } catch (const Error&) {
        return true;
      }
    });
  }
  Refusals refusals;
  for (const uint32_t index : stopped) refusals.ask([&] { throw output_is_stopped(masters_.at(index).name); });
  refusals.demand_none();
}

/// Whoever else holds an end of a terminal of the tree would be left with a dead one.
void TerminalEnds::demand_no_guests(const RunningTree& tree) const {
  std::map<InodeKey, std::string> nodes;
  for (const auto& [index, master] : masters_)
    if (const auto node = slave_node(*master.proc, index)) nodes.emplace(inode_of(*node), master.name);
  Refusals refusals;
  tree.look_outside([&](const ProcDir& other, int fd, const std::string& link) {
    if (link.starts_with("/dev/pts/") && !is_master_link(link)) {
      const auto node = nodes.find(inode_of(stat_cached(other.fd(), "fd/" + std::to_string(fd), 0, link)));
      if (node == nodes.end()) return;
      refusals.ask([&] {
        throw Refusal(
            node->second + ", whose slave " + link + " is held by " + name_of(other) + ", outside of the tree",
            "end that process, or move it along");
      });
    }
    if (!is_master_link(link)) return;
    const auto index = index_told(other, fd);
    const auto master = index && *index < kMaxTerminals ? masters_.find(static_cast<uint32_t>(*index)) : masters_.end();
    if (master == masters_.end()) return;
    const Seen& ours = master->second;
    if (::syscall(SYS_kcmp, ours.proc->pid(), other.pid(), KCMP_FILE, ours.fd, fd) != 0) return;
    refusals.ask([&] {
      throw Refusal(ours.name + ", which " + name_of(other) + ", outside of the tree, holds, too",
                    "end that process, or move it along");
    });
  });
  refusals.demand_none();
}

}  // namespace migrate

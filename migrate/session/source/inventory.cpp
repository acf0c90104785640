#include "migrate/session/source/inventory.h"

#include <arpa/inet.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <sstream>

#include "core/base/looked_at.h"
#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/files/net_table.h"
#include "migrate/session/source/inventory_files.h"
#include "migrate/session/source/inventory_privileges.h"

namespace migrate {
namespace {

constexpr const char* kProbeName = ".migrate-probe-";

std::vector<pid_t> tree_of(pid_t root) {
  std::vector<pid_t> pids{root};
  for (size_t i = 0; i < pids.size() && pids.size() < 100'000; ++i) {
    try {
      for (const pid_t child : ProcDir(pids[i]).children()) pids.push_back(child);
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
      if (i == 0) throw Refusal("there is no task " + std::to_string(root), "look up its pid again");
    }
  }
  return pids;
}

using Sockets = std::map<uint64_t, SocketHolder>;  ///< by inode

void add_port(const NetTableLine& line, int family, int type, const Sockets& sockets, wire::Check& check) {
  const auto socket = sockets.find(line.inode);
  if (line.state != (type == SOCK_DGRAM ? TCP_CLOSE : TCP_LISTEN) || socket == sockets.end()) return;
  wire::Check::Port* port = check.add_ports();
  port->set_family(static_cast<uint32_t>(family));
  port->set_type(static_cast<uint32_t>(type));
  port->set_address(line.address);
  port->set_port(line.port);
  add_port_privilege(socket->second, port->port(), check);
}

void add_ports(const ProcDir& proc, const Sockets& sockets, wire::Check& check) {
  static constexpr struct {
    const char* name;
    int family, type;
  } kTables[] = {{"net/tcp", AF_INET, SOCK_STREAM},
                 {"net/tcp6", AF_INET6, SOCK_STREAM},
                 {"net/udp", AF_INET, SOCK_DGRAM},
                 {"net/udp6", AF_INET6, SOCK_DGRAM}};
  if (sockets.empty()) return;  // reading the tables walks the kernel's, milliseconds even when they are empty
  for (const auto& table : kTables) {
    std::istringstream lines;
    try {
      lines.str(proc.read(table.name));
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
      continue;  // no IPv6
    }
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line))
      add_port(parse_net_table_line(line, table.family), table.family, table.type, sockets, check);
  }
}

/// Who the threads of a tree are.
class Identities {
 public:
  explicit Identities(CredentialTable& table) : table_(table) {}

  /// Of the leader, whose status that is, and of these threads.
  HolderNumbers add(const ProcDir& task, const std::string& status, std::span<const pid_t> threads) {
    HolderNumbers numbers;
    add(status, numbers);
    for (const pid_t tid : threads) {
      if (tid == task.pid()) continue;
      try {
        add(task.read("task/" + std::to_string(tid) + "/status"), numbers);
      } catch (const Error& e) {
        if (!task_is_gone(e)) throw;  // it ended meanwhile
      }
    }
    return numbers;
  }
  void write(wire::Check& check) const {
    for (const uint32_t uid : ids_.uids) check.add_uids(uid);
    for (const uint32_t gid : ids_.gids) check.add_gids(gid);
    check.set_capabilities(capabilities_);
  }
  const UserIds& ids() const { return ids_; }

 private:
  /// Nearly all are alike: what was seen is not looked at again.
  void add(const std::string& status, HolderNumbers& numbers) {
    const auto part = [&](const char* from, const char* to) {
      const size_t start = std::min(status.find(from), status.size());
      return status.substr(start, std::min(status.find(to, start), status.size()) - start);
    };
    const std::string rights = part("\nUid:", "\nNStgid:") + part("\nCapInh:", "\nSeccomp:");
    const auto [it, fresh] = seen_.try_emplace(rights, 0);
    if (fresh) {
      it->second = table_.number(credentials_in_status(status));
      look_at(rights);
    }
    numbers.insert(it->second);
  }
  void look_at(const std::string& rights) {
    const StatusFields fields = parse_status(rights);
    for (const auto& [key, ids] :
         {std::pair("Uid", &ids_.uids), std::pair("Gid", &ids_.gids), std::pair("Groups", &ids_.gids)}) {
      const auto numbers = parse_numbers<uint32_t>(status_field(fields, key), "/proc/PID/status: ids");
      ids->insert(numbers.begin(), numbers.end());
    }
    for (const char* set : {"CapPrm", "CapInh", "CapAmb"})
      capabilities_ |= parse_number(status_field(fields, set), "/proc/PID/status: capabilities", 16);
  }

  CredentialTable& table_;
  std::map<std::string, uint32_t> seen_;  ///< texts, and numbers in the table
  UserIds ids_;
  uint64_t capabilities_ = 0;
};

void add_memory(const StatusFields& status, wire::Check& check) {
  if (const auto rss = status.find("VmRSS"); rss != status.end())
    check.set_memory(check.memory() + parse_first_number(rss->second, "/proc/PID/status: VmRSS") * 1024);
}

bool has_layout(const wire::Check& check, const wire::Check::KernelMappings& layout) {
  return std::ranges::any_of(check.kernel_mappings(),
                             [&](const auto& l) { return std::ranges::equal(l.ends(), layout.ends()); });
}

void add_kernel_mappings(pid_t task, std::string_view maps, wire::Check& check) {
  wire::Check::KernelMappings layout;
  layout.set_task(task);
  uint64_t first = 0;
  for (size_t at = maps.find("[v"); at != maps.npos; at = maps.find("[v", at + 1)) {
    const std::string_view name = maps.substr(at, maps.find('\n', at) - at);
    if (name != "[vdso]" && name != "[vvar]" && name != "[vvar_vclock]") continue;
    const std::string_view line = maps.substr(maps.rfind('\n', at) + 1);
    if (line.find('/') < line.find('\n')) continue;  // a file of that name
    const size_t dash = line.find('-');
    const uint64_t start = parse_number(line.substr(0, dash), "/proc/PID/maps", 16);
    const uint64_t end = parse_number(line.substr(dash + 1, line.find(' ') - dash - 1), "/proc/PID/maps", 16);
    if (layout.ends().empty()) first = start;
    layout.add_ends(start - first);
    layout.add_ends(end - first);
  }
  if (!layout.ends().empty() && !has_layout(check, layout)) *check.add_kernel_mappings() = std::move(layout);
}

bool same_port(const wire::Check::Port& a, const wire::Check::Port& b) {
  return a.family() == b.family() && a.type() == b.type() && a.address() == b.address() && a.port() == b.port() &&
         a.protocol() == b.protocol();
}

/// Takes away what was checked before: ports, users.
void leave_out(const wire::Check& known, wire::Check& check) {
  auto* ports = check.mutable_ports();
  const auto known_port = [&](const wire::Check::Port& port) {
    return std::any_of(known.ports().begin(), known.ports().end(), [&](const auto& k) { return same_port(k, port); });
  };
  ports->erase(std::remove_if(ports->begin(), ports->end(), known_port), ports->end());
  const std::set<uint32_t> uids(known.uids().begin(), known.uids().end());
  auto* now = check.mutable_uids();
  now->erase(std::remove_if(now->begin(), now->end(), [&](uint32_t uid) { return uids.contains(uid); }), now->end());
  check.set_capabilities(check.capabilities() & ~known.capabilities());
  auto* layouts = check.mutable_kernel_mappings();
  layouts->erase(std::remove_if(layouts->begin(), layouts->end(), [&](const auto& l) { return has_layout(known, l); }),
                 layouts->end());
  check.clear_pids();
  check.clear_memory();
  check.clear_threads();
}

void add_descriptors(const ProcDir& task, uint64_t held, const HolderNumbers& holders, FileNeeds& files,
                     DescriptorPrivileges& privileges, wire::Check& check) {
  const std::vector<int> numbers = task.descriptors();
  if (!numbers.empty())
    check.set_highest_descriptor(std::max(check.highest_descriptor(), static_cast<uint32_t>(numbers.back())));
  for (const int fd : numbers) {
    try {
      const std::string link = task.link("fd/" + std::to_string(fd));
      const mode_t mode = files.add_descriptor(task, fd, link, holders);
      privileges.add(task, fd, link, mode, held, holders);
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;  // closed meanwhile
    }
  }
}

/// A message has its bounds. What is left out the restore decides.
void leave_out_what_is_too_much(wire::Check& check) {
  constexpr size_t kRoom = 3 << 20;
  if (check.ByteSizeLong() <= kRoom) return;
  check.clear_made();
  check.clear_credentials();
  for (auto& file : *check.mutable_files()) file.clear_uses();
}

}  // namespace

Inventory take_inventory(Pid root, InventoryDepth depth, const Inventory* known) {
  Inventory inventory;
  const bool deep = depth == InventoryDepth::whole;
  CredentialTable credentials = known != nullptr ? CredentialTable(known->check) : CredentialTable();
  Identities identities(credentials);
  FileNeeds files(deep);
  DescriptorPrivileges descriptors(deep, known == nullptr ? nullptr : &known->asked);
  for (const pid_t pid : tree_of(root.get())) {
    try {
      const ProcDir proc(pid);
      inventory.check.add_pids(static_cast<uint32_t>(pid));
      if (proc.stat().state == 'Z') continue;
      const std::string text = proc.read("status");
      const StatusFields status = parse_status(text);
      const std::vector<pid_t> threads = proc.threads();
      const HolderNumbers holders = identities.add(proc, text, deep ? std::span(threads) : std::span<const pid_t>());
      const uint64_t held = held_capabilities(status);
      const std::string maps = proc.read("maps");
      files.add_mappings(maps, holders);
      add_kernel_mappings(pid, maps, inventory.check);
      files.add_links(proc, holders);
      add_descriptors(proc, held, holders, files, descriptors, inventory.check);
      add_memory(status, inventory.check);
      inventory.check.set_threads(inventory.check.threads() + threads.size() - 1);
      add_privileges(proc, status, threads, held, inventory.check);
    } catch (const Error& e) {
      if (pid == root.get() || !task_is_gone(e)) throw;  // others may end at any time
    }
  }
  add_ports(ProcDir(root.get()), descriptors.sockets(), inventory.check);
  identities.write(inventory.check);
  inventory.asked = descriptors.write(inventory.check, files, identities.ids());
  static const wire::Check kNothing;
  leave_out_privileges(known != nullptr ? known->check : kNothing, inventory.check);
  if (known != nullptr) {
    leave_out(known->check, inventory.check);
    files.leave_out(known->check);
  }
  files.describe(inventory.check, inventory.writable_files);
  credentials.write(inventory.check);
  leave_out_what_is_too_much(inventory.check);
  return inventory;
}

void extend_inventory(Inventory& known, const Inventory& news) {
  // What is merged replaces single values: the news would be all of them each time, and be asked about while it stands.
  const uint64_t capabilities = known.check.capabilities() | news.check.capabilities();
  known.check.clear_credentials();  // the news have them, and more
  known.check.MergeFrom(news.check);
  known.check.set_capabilities(capabilities);
  known.asked.insert(news.asked.begin(), news.asked.end());
  known.writable_files.insert(known.writable_files.end(), news.writable_files.begin(), news.writable_files.end());
}

FileProbes::FileProbes(wire::Check& check) : FileProbes() {
  std::map<std::string, std::pair<std::string, std::string>> by_folder;
  for (auto& file : *check.mutable_files()) {
    if (!file.writable() && file.locks_size() == 0) continue;
    const std::string folder = file.path().substr(0, file.path().rfind('/'));
    auto [it, fresh] = by_folder.try_emplace(folder);
    if (fresh) it->second = make(folder);
    file.set_probe_path(it->second.first);
    file.set_probe_content(it->second.second);
  }
}

/// Gives path and content; both empty if the folder cannot be written. It is the program that names the folder: no link
/// on the way may lead a file of root's elsewhere.
std::pair<std::string, std::string> FileProbes::make(const std::string& folder) {
  std::array<std::byte, 16> random{};
  fill_random(random);
  std::string content;
  for (const std::byte b : random) content += "0123456789abcdef"[std::to_integer<unsigned>(b) & 15];
  const std::string name = kProbeName + content.substr(0, 8);
  open_how how{};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_NO_SYMLINKS;
  Fd place(static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, folder.empty() ? "/" : folder.c_str(), &how, sizeof how)));
  if (!place) return {};
  const Fd fd(::openat(place.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd) return {};
  // A bounded receiver reads it as the program's user; what it holds is worth nothing to others.
  ::fchmod(fd.get(), 0644);
  made_.emplace_back(std::move(place), name);
  try {
    write_full(fd.get(), as_bytes_of(content), folder + "/" + name);
  } catch (const Error&) {  // the disk is full
    return {};
  }
  ::fsync(fd.get());
  return {folder + "/" + name, content};
}

FileProbes::~FileProbes() {
  for (const auto& [folder, name] : made_) ::unlinkat(folder.get(), name.c_str(), 0);
}

void sync_files(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    const Fd fd = open_regular(path, O_RDONLY | O_NONBLOCK);
    if (fd) check(::fsync(fd.get()), "sync", path);  // else unlinked meanwhile: it travels in the images
  }
}

}  // namespace migrate

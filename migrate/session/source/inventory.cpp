#include "migrate/session/source/inventory.h"

#include <arpa/inet.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/random.h>
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
#include "core/files/fdinfo.h"
#include "core/files/file_locks.h"
#include "core/files/net_table.h"
#include "migrate/session/source/inventory_privileges.h"
#include "migrate/session/wire/content_hash.h"

namespace migrate {
namespace {

constexpr const char* kProbeName = ".migrate-probe-";

struct Need {
  bool mapped = false;
  bool writable = false;
  std::vector<FileLock> locks;
};

bool is_pseudo(const std::string& path) {
  for (const char* prefix : {"/dev/", "/proc/", "/sys/", "/memfd:", "/SYSV", "/[aio]"}) {
    if (path.starts_with(prefix)) return true;
  }
  return path.empty() || path[0] != '/' || path.ends_with(" (deleted)");
}

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

/// "/proc/PID/maps": the paths of mapped files.
void add_mappings(const ProcDir& proc, std::map<std::string, Need>& files) {
  std::istringstream lines(proc.read("maps"));
  for (std::string line; std::getline(lines, line);) {
    const size_t slash = line.find('/');
    const size_t space = line.find(' ');
    if (slash == std::string::npos || space == std::string::npos || space + 5 > line.size()) continue;
    const std::string path = line.substr(slash);
    if (is_pseudo(path)) continue;
    const bool shared_write = line[space + 2] == 'w' && line[space + 4] == 's';
    if (shared_write) {
      files[path].writable = true;
    } else {
      files[path].mapped = true;
    }
  }
}

using Sockets = std::map<uint64_t, SocketHolder>;  ///< by inode

void add_descriptors(const ProcDir& proc, uint64_t held, std::map<std::string, Need>& files, Sockets& sockets) {
  for (const int fd : proc.descriptors()) {
    std::string path;
    struct stat st {};
    try {
      path = proc.link("fd/" + std::to_string(fd));
      if (path.starts_with("socket:[")) {
        SocketHolder& holder = sockets[std::strtoull(path.c_str() + 8, nullptr, 10)];
        if (holder.task == 0) holder.task = proc.pid();
        holder.held |= held;
        continue;
      }
      if (is_pseudo(path)) continue;
      if (::fstatat(proc.fd(), ("fd/" + std::to_string(fd)).c_str(), &st, 0) != 0) continue;
      const FdInfo info = parse_fdinfo(proc.read("fdinfo/" + std::to_string(fd)));
      Need& need = files[path];
      need.writable |= (info.flags & O_ACCMODE) != O_RDONLY && S_ISREG(st.st_mode);
      for (const FileLock& lock : parse_file_locks(info)) need.locks.push_back(lock);
    } catch (const Error&) {
      continue;  // closed meanwhile
    }
  }
}

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
    } catch (const Error&) {
      continue;  // no IPv6
    }
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line))
      add_port(parse_net_table_line(line, table.family), table.family, table.type, sockets, check);
  }
}

struct Identities {
  std::set<uint32_t> uids, gids;
  uint64_t capabilities = 0;
};

void add_identity(const ProcDir& proc, wire::Check& check, Identities& all) {
  const auto status = proc.status();
  for (const auto& [key, ids] :
       {std::pair("Uid", &all.uids), std::pair("Gid", &all.gids), std::pair("Groups", &all.gids)}) {
    const auto field = status.find(key);
    if (field == status.end()) continue;
    const auto numbers = parse_numbers<uint32_t>(field->second, "/proc/PID/status: " + std::string(key));
    ids->insert(numbers.begin(), numbers.end());
  }
  for (const std::string set : {"CapPrm", "CapInh", "CapAmb"})
    if (const auto c = status.find(set); c != status.end())
      all.capabilities |= parse_number(c->second, "/proc/PID/status: " + set, 16);
  if (const auto rss = status.find("VmRSS"); rss != status.end()) {
    check.set_memory(check.memory() + parse_first_number(rss->second, "/proc/PID/status: VmRSS") * 1024);
  }
}

void describe_file(const std::string& path, const Need& need, wire::Check& check) {
  struct stat st {};
  const Fd found(::open(path.c_str(), O_PATH | O_CLOEXEC));  // the program may put something else there at any time
  if (!found || ::fstat(found.get(), &st) != 0) return;      // seen through another mount: the dump decides about it
  wire::Check::File* file = check.add_files();
  file->set_path(path);
  file->set_type(st.st_mode & S_IFMT);
  file->set_size(static_cast<uint64_t>(st.st_size));
  file->set_inode(st.st_ino);
  file->set_writable(need.writable);
  for (const FileLock& lock : need.locks) {
    if (lock.kind == 0) continue;  // a lease: refused by the dump
    wire::Check::Lock* out = file->add_locks();
    out->set_kind(lock.kind);
    out->set_type(lock.type);
    out->set_start(lock.start);
    out->set_length(lock.length);
  }
  if (need.mapped && !need.writable && S_ISREG(st.st_mode)) {
    file->set_mapped(true);
    file->set_content(content_hash("/proc/self/fd/" + std::to_string(found.get())));
  }
}

bool same_port(const wire::Check::Port& a, const wire::Check::Port& b) {
  return a.family() == b.family() && a.type() == b.type() && a.address() == b.address() && a.port() == b.port();
}

/// Takes away what was checked before: files (unless they are written or locked now), ports, users.
void leave_out(const wire::Check& known, std::map<std::string, Need>& files, wire::Check& check) {
  for (const auto& file : known.files()) {
    const auto it = files.find(file.path());
    if (it == files.end() || (it->second.writable && !file.writable())) continue;
    if (it->second.locks.empty() || file.locks_size() != 0) files.erase(it);
  }
  auto* ports = check.mutable_ports();
  const auto known_port = [&](const wire::Check::Port& port) {
    return std::any_of(known.ports().begin(), known.ports().end(), [&](const auto& k) { return same_port(k, port); });
  };
  ports->erase(std::remove_if(ports->begin(), ports->end(), known_port), ports->end());
  const std::set<uint32_t> uids(known.uids().begin(), known.uids().end());
  auto* now = check.mutable_uids();
  now->erase(std::remove_if(now->begin(), now->end(), [&](uint32_t uid) { return uids.contains(uid); }), now->end());
  check.set_capabilities(check.capabilities() & ~known.capabilities());
  check.clear_pids();
  check.clear_memory();
}

}  // namespace

Inventory take_inventory(Pid root, const Inventory* known) {
  Inventory inventory;
  std::map<std::string, Need> files;
  Sockets sockets;
  Identities identities;
  for (const pid_t pid : tree_of(root.get())) {
    try {
      const ProcDir proc(pid);
      inventory.check.add_pids(static_cast<uint32_t>(pid));
      if (proc.stat().state == 'Z') continue;
      add_mappings(proc, files);
      const uint64_t held = held_capabilities(proc);
      add_descriptors(proc, held, files, sockets);
      add_identity(proc, inventory.check, identities);
      add_privileges(proc, held, inventory.check);
      for (const char* link : {"exe", "cwd", "root"}) {
        const std::string path = proc.link(link);
        if (!is_pseudo(path)) files.try_emplace(path);
      }
    } catch (const Error& e) {
      if (pid == root.get() || !task_is_gone(e)) throw;  // others may end at any time
    }
  }
  add_ports(ProcDir(root.get()), sockets, inventory.check);
  for (const uint32_t uid : identities.uids) inventory.check.add_uids(uid);
  for (const uint32_t gid : identities.gids) inventory.check.add_gids(gid);
  inventory.check.set_capabilities(identities.capabilities);
  leave_out_privileges(known != nullptr ? known->check : wire::Check(), inventory.check);
  if (known != nullptr) leave_out(known->check, files, inventory.check);
  for (const auto& [path, need] : files) {
    describe_file(path, need, inventory.check);
    if (need.writable) inventory.writable_files.push_back(path);
  }
  return inventory;
}

void extend_inventory(Inventory& known, const Inventory& news) {
  // What is merged replaces single values: the news would be all of them each time, and be asked about while it stands.
  const uint64_t capabilities = known.check.capabilities() | news.check.capabilities();
  known.check.MergeFrom(news.check);
  known.check.set_capabilities(capabilities);
  known.writable_files.insert(known.writable_files.end(), news.writable_files.begin(), news.writable_files.end());
}

FileProbes::FileProbes(wire::Check& check) : FileProbes() {
  std::map<std::string, std::pair<std::string, std::string>> by_folder;
  for (auto& file : *check.mutable_files()) {
    if (!file.writable()) continue;
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
  std::array<unsigned char, 16> random{};
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    throw Error("get", "random bytes", errno);
  std::string content;
  for (const unsigned char c : random) content += "0123456789abcdef"[c & 15];
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

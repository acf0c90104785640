#include "migrate/session/source/inventory_files.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <sstream>

#include "core/base/looked_at.h"
#include "core/files/devices.h"
#include "migrate/session/wire/content_hash.h"

namespace migrate {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

/// The kernel's names for what has none, and what no path leads to.
bool has_path(const std::string& link) {
  for (const char* prefix : {"/memfd:", "/SYSV", "/[aio]", "/anon_hugepage", "/dev/zero (deleted)"})
    if (link.starts_with(prefix)) return false;
  return link.starts_with('/') && !link.ends_with(kDeleted);
}

/// What every host has, of its own.
bool is_of_kernel(const std::string& path) {
  for (const char* prefix : {"/dev/", "/proc/", "/sys/"})
    if (path.starts_with(prefix)) return !path.starts_with("/dev/shm/");
  return false;
}

/// Of a process: the copy's own will be there when it is.
bool is_of_process(const std::string& path) {
  return path.starts_with("/proc/") && path.size() > 6 && path[6] >= '0' && path[6] <= '9';
}

/// What decides who may open it.
uint32_t open_rights(uint32_t flags) { return flags & static_cast<uint32_t>(O_ACCMODE | O_PATH | O_NOATIME); }

void describe_inode(const std::string& path, const struct stat& st, wire::Check::File& file) {
  file.set_path(path);
  file.set_type(st.st_mode & S_IFMT);
  file.set_size(static_cast<uint64_t>(st.st_size));
  file.set_inode(st.st_ino);
  file.set_mode(st.st_mode);
  file.set_uid(st.st_uid);
  file.set_gid(st.st_gid);
}

}  // namespace

CredentialTable::CredentialTable(const wire::Check& sent) {
  for (const auto& c : sent.credentials())
    number({c.uid(), c.gid(), {c.groups().begin(), c.groups().end()}, c.capabilities()});
}

uint32_t CredentialTable::number(const FileCredentials& who) {
  return numbers_.try_emplace(who, static_cast<uint32_t>(numbers_.size())).first->second;
}

void CredentialTable::write(wire::Check& check) const {
  check.clear_credentials();
  std::vector<const FileCredentials*> all(numbers_.size());
  for (const auto& [who, number] : numbers_) all[number] = &who;
  for (const FileCredentials* who : all) {
    wire::Check::Credentials* out = check.add_credentials();
    out->set_uid(who->uid);
    out->set_gid(who->gid);
    out->mutable_groups()->Add(who->groups.begin(), who->groups.end());
    out->set_capabilities(who->capabilities);
  }
}

FileNeeds::Need* FileNeeds::need(const std::string& path) {
  if (!has_path(path) || is_of_process(path)) return nullptr;
  const bool kernel = is_of_kernel(path);
  if (kernel && !with_uses_) return nullptr;
  Need& need = needs_[path];
  need.own_content = !kernel;
  return &need;
}

/// Several descriptions of one path are taken for one that all have: it is not asked for what nobody may need, and the
/// restore knows.
void FileNeeds::use(Uses& uses, FileUse how, uint32_t flags, const HolderNumbers& holders) const {
  if (with_uses_) uses[{how, flags}].insert(holders.begin(), holders.end());
}

void FileNeeds::add_mappings(const std::string& maps, const HolderNumbers& holders) {
  std::istringstream lines(maps);
  for (std::string line; std::getline(lines, line);) {
    const size_t slash = line.find('/');
    const size_t space = line.find(' ');
    if (slash == std::string::npos || space == std::string::npos || space + 5 > line.size()) continue;
    Need* file = need(line.substr(slash));
    if (file == nullptr) continue;
    const bool shared_write = line[space + 2] == 'w' && line[space + 4] == 's';
    (shared_write ? file->writable : file->mapped) = true;
    use(file->uses, FileUse::opened, shared_write ? O_RDWR : O_RDONLY, holders);
  }
}

void FileNeeds::add_links(const ProcDir& task, const HolderNumbers& holders) {
  for (const auto& [link, how] : {std::pair("exe", FileUse::opened), std::pair("cwd", FileUse::work_folder),
                                  std::pair("root", FileUse::root_folder)}) {
    if (Need* file = need(task.link(link))) use(file->uses, how, O_RDONLY, holders);
  }
}

mode_t FileNeeds::add_descriptor(const ProcDir& task, int fd, const std::string& link, const HolderNumbers& holders) {
  if (!link.starts_with('/')) return 0;
  const std::string number = std::to_string(fd);
  const bool named = has_path(link);
  if (!named && !link.ends_with(kDeleted)) return 0;
  struct stat st {};
  check(::fstatat(task.fd(), ("fd/" + number).c_str(), &st, 0), "stat", link);
  if (!named) add_deleted(link, st, holders);
  if (S_ISLNK(st.st_mode)) return st.st_mode;  // only a path (O_PATH), which would be followed here
  // The tree's own, which it gets in a devpts of its own there: others are refused here.
  if (S_ISCHR(st.st_mode) && terminal_device(major(st.st_rdev), minor(st.st_rdev))) return st.st_mode;
  Need* file = named ? need(link) : nullptr;
  if (file == nullptr) return st.st_mode;
  const FdInfo info = parse_fdinfo(task.read("fdinfo/" + number));
  file->writable |= (info.flags & O_ACCMODE) != O_RDONLY && S_ISREG(st.st_mode);
  for (const FileLock& lock : parse_file_locks(info)) file->locks.push_back(lock);
  use(file->uses, FileUse::opened, open_rights(info.flags), holders);
  return st.st_mode;
}

void FileNeeds::add_deleted(const std::string& link, const struct stat& st, const HolderNumbers& holders) {
  if (!with_uses_ || st.st_nlink != 0 || (!S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode) && !S_ISDIR(st.st_mode)))
    return;
  const std::string path = link.substr(0, link.size() - kDeleted.size());
  if (!has_path(path) || is_of_process(path) || path == "/dev/zero") return;
  Made& made = made_[{path, st.st_ino}];
  made.st = st;
  use(made.uses, FileUse::deleted, 0, holders);
}

void FileNeeds::add_socket(const std::string& path, const struct stat& st, const HolderNumbers& holders) {
  Made& made = made_[{path, st.st_ino}];
  made.st = st;
  use(made.uses, FileUse::socket, 0, holders);
}

/// Whether all of them were asked about, for no more holders.
bool FileNeeds::known_uses(const Uses& uses, const wire::Check::File& file) {
  return std::ranges::all_of(uses, [&](const auto& now) {
    return std::ranges::any_of(file.uses(), [&](const wire::Check::Use& u) {
      const auto holds = [&](uint32_t holder) { return now.second.contains(holder); };
      return u.use() == static_cast<uint32_t>(now.first.first) && u.flags() == now.first.second &&
             std::ranges::all_of(u.holders(), holds);
    });
  });
}

void FileNeeds::leave_out(const wire::Check& known) {
  for (const auto& file : known.files()) {
    const auto it = needs_.find(file.path());
    if (it == needs_.end() || (it->second.writable && !file.writable())) continue;
    if (!it->second.locks.empty() && file.locks_size() == 0) continue;
    if (known_uses(it->second.uses, file)) needs_.erase(it);
  }
  for (const auto& file : known.made()) {
    const auto it = made_.find({file.path(), file.inode()});
    if (it != made_.end() && known_uses(it->second.uses, file)) made_.erase(it);
  }
}

void FileNeeds::describe_uses(const Uses& uses, wire::Check::File& file) {
  for (const auto& [how, holders] : uses) {
    wire::Check::Use* out = file.add_uses();
    out->set_use(static_cast<uint32_t>(how.first));
    out->set_flags(how.second);
    out->mutable_holders()->Add(holders.begin(), holders.end());
  }
}

/// False: it is seen through another mount, and the dump decides about it.
bool FileNeeds::describe_file(const std::string& path, const Need& need, wire::Check::File& file) {
  struct stat st {};
  const Fd found = find_by_name(path);  // the program may put something else there at any time
  if (!found || ::fstat(found.get(), &st) != 0) return false;
  describe_inode(path, st, file);
  describe_uses(need.uses, file);
  if (!need.own_content) return true;
  file.set_writable(need.writable);
  for (const FileLock& lock : need.locks) {
    if (lock.kind == 0) continue;  // a lease: refused by the dump
    wire::Check::Lock* out = file.add_locks();
    out->set_kind(lock.kind);
    out->set_type(lock.type);
    out->set_start(lock.start);
    out->set_length(lock.length);
  }
  if (need.mapped && !need.writable && S_ISREG(st.st_mode)) {
    file.set_mapped(true);
    file.set_content(content_hash(fd_link(found.get())));
  }
  return true;
}

void FileNeeds::describe(wire::Check& check, std::vector<std::string>& writable) const {
  for (const auto& [path, need] : needs_) {
    if (!describe_file(path, need, *check.add_files())) check.mutable_files()->RemoveLast();
    if (need.writable && need.own_content) writable.push_back(path);
  }
  for (const auto& [key, made] : made_) {
    wire::Check::File* file = check.add_made();
    describe_inode(key.first, made.st, *file);
    describe_uses(made.uses, *file);
  }
}

}  // namespace migrate

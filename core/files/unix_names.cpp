#include "core/files/unix_names.h"

#include <linux/capability.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <sstream>

#include "core/files/found_file.h"
#include "core/files/hidden_sockets.h"
#include "core/files/paths.h"
#include "core/files/unix_address.h"
#include "core/files/unix_diag.h"

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000U
#endif

namespace migrate {
namespace {

constexpr char kFile[] = "s";       ///< in a stage: the bound socket
constexpr char kScene[] = "t";      ///< in a stage: the root folder in which it is bound
constexpr unsigned kNoReplace = 1;  ///< RENAME_NOREPLACE

struct statx stat_socket(int fd) {
  return stat_opened(fd, "the file of a Unix socket");
}

/// The device that the kernel lists a file under: its super block's, which stat(2) does not tell everywhere (btrfs).
uint32_t listed_device(int file) {
  struct statx st {};
  check(::statx(file, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, &st), "stat", "the file of a Unix socket");
  std::istringstream mounts(read_file_at(AT_FDCWD, "/proc/self/mountinfo"));
  for (std::string line; std::getline(mounts, line);) {
    unsigned long long id = 0;
    unsigned parent = 0, major = 0, minor = 0;
    if (std::sscanf(line.c_str(), "%llu %u %u:%u", &id, &parent, &major, &minor) == 4 && id == st.stx_mnt_id)
      return major << 20 | minor;
  }
  return st.stx_dev_major << 20 | st.stx_dev_minor;
}

bool in_use(int file) {
  const auto inode = static_cast<uint32_t>(stat_socket(file).stx_ino);
  std::optional<uint32_t> device;
  for (const auto& [ino, info] : list_unix_sockets(nullptr)) {
    if (info.name.empty() || abstract_name(info.name) || info.file_ino != inode) continue;
    if (!device) device = listed_device(file);
    if (info.file_device == *device) return true;
  }
  return false;
}

}  // namespace

std::string who_is(const img::unix_sk_entry& e) {
  std::string name = clean_name(e.name());
  if (name.empty()) return "Unix socket " + std::to_string(e.ino());
  if (abstract_name(name)) name.front() = '@';
  return "Unix socket " + name;
}

SplitPath file_place(const img::unix_sk_entry& e, const std::string& moved) {
  SplitPath place = split_path(moved.empty() ? clean_name(e.name()) : moved);
  if (!moved.empty() || clean_name(e.name()).front() == '/') return place;
  if (!e.name_dir().starts_with("/")) throw Corrupt("files.img", who_is(e) + " has no folder");
  place.folder = e.name_dir() + "/" + place.folder;
  return place;
}

void bind_backstage(int fd, const img::unix_sk_entry& e) {
  const UnixAddress address(e.name());
  const std::string path = clean_name(e.name());
  if (!abstract_name(path)) {
    if (path.front() != '/') {
      const std::string folder = e.has_name_dir() && e.name_dir().starts_with("/") ? e.name_dir() : "/";
      if (folder != "/") make_folders(folder);
      check(::chdir(folder.c_str()), "enter", folder);
    }
    const size_t slash = path.rfind('/');
    if (slash != std::string::npos && slash != 0) make_folders(path.substr(0, slash));
  }
  check(::bind(fd, address.get(), address.length), "bind", who_is(e));
}

void check_free(const SocketPlace& place, const FileCredentials& who, bool may_be_in_use) {
  const struct statx folder = stat_socket(place.folder);
  const bool sticky = (folder.stx_mode & S_ISVTX) != 0 && folder.stx_uid != who.uid;
  const auto may_rename = [&](uint32_t owner) { return !sticky || owner == who.uid || who.has(CAP_FOWNER); };
  if (place.owner && !may_rename(*place.owner)) throw Denied("it may not rename a file of another user there");
  const Fd there = try_open_plain(place.folder, place.name, O_PATH | O_NOFOLLOW);
  if (!there && errno == ENOENT) return;
  check(there.get(), "look at", place.socket);
  const struct statx st = stat_socket(there.get());
  if ((st.stx_mode & S_IFMT) != S_IFSOCK) throw Error("bind", place.socket + ", where another file is", EEXIST);
  if (!may_be_in_use && in_use(there.get()))
    throw Error("bind", place.socket + ", which another process uses", EADDRINUSE);
  if (!may_rename(st.stx_uid))
    throw Denied("it may not replace the file of user " + std::to_string(st.stx_uid) + " that is there");
}

Fd new_socket(const img::unix_sk_entry& e, int flags) {
  return Fd(check(::socket(AF_UNIX, static_cast<int>(e.type()) | SOCK_CLOEXEC | flags, 0), "make", "a Unix socket"));
}

UnixNames::~UnixNames() {
  for (auto& [ino, place] : waiting_) remove(place);
}

void UnixNames::bind(int fd, const img::unix_sk_entry& e, const std::string& moved, const Holders& holders) {
  const UnixAddress address(e.name());
  Waiting place = find_place(e, moved, holders);
  make_stage(place);
  const auto [it, fresh] = waiting_.emplace(e.ino(), std::move(place));
  if (!fresh) throw Corrupt("files.img", who_is(e) + " stands twice");
  const int stage = it->second.stage.get();
  const Fd scene = open_below(stage, kScene, O_PATH | O_DIRECTORY);
  with_root(scene.get(), [&] {
    bind_backstage(fd, e);
    // The thread is where the name begins.
    check(::renameat(AT_FDCWD, clean_name(e.name()).c_str(), stage, kFile), "take aside", who_is(e));
  });
  remove_tree_at(stage, kScene);
  const Fd file = open_below(stage, kFile, O_PATH | O_NOFOLLOW);
  if ((stat_socket(file.get()).stx_mode & S_IFMT) != S_IFSOCK) throw Error("take aside", who_is(e), ESTALE);
  set_owner(it->second, file.get());
}

UnixNames::Waiting UnixNames::find_place(const img::unix_sk_entry& e, const std::string& moved,
                                         const Holders& holders) {
  const SplitPath at = file_place(e, moved);
  Waiting place{&e, {}, at.name, mark_ + "-" + std::to_string(++serial_), {}, {}, false};
  paths_.attempt(holders, who_is(e), [&](Right right) {
    place.folder = find_folder_to_make_in(paths_, right, at.folder);
    place.by_root = right == Right::root;
    place.who = paths_.now();
    std::optional<uint32_t> owner;
    if (e.has_file_perms()) owner = e.file_perms().uid();
    check_free({.folder = place.folder.get(), .name = place.name, .socket = who_is(e), .owner = owner}, place.who,
               false);
  });
  return place;
}

/// The folder it is made in may be anybody's, so what was opened must be what was made.
void UnixNames::make_stage(Waiting& place) const {
  const std::string name = place.hidden + ".d";
  check(::mkdirat(place.folder.get(), name.c_str(), 0700), "make a folder beside", who_is(*place.entry));
  place.stage = open_below(place.folder.get(), name, O_PATH | O_DIRECTORY | O_NOFOLLOW);
  const struct statx st = stat_socket(place.stage.get());
  if (st.stx_uid != paths_.self().uid || (st.stx_mode & 0777) != 0700 || st.stx_nlink > 2)
    throw Error("make a folder beside", who_is(*place.entry) + ", where somebody put another", ESTALE);
  check(::mkdirat(place.stage.get(), kScene, 0700), "make a folder for", who_is(*place.entry));
}

/// By descriptor, in a folder that only we can look into.
void UnixNames::set_owner(const Waiting& place, int file) {
  const std::string self = fd_link(file), who = who_is(*place.entry);
  uint32_t uid = place.who.uid, gid = place.who.gid;
  if (place.entry->has_file_perms()) {
    uid = place.entry->file_perms().uid();
    gid = place.entry->file_perms().gid();
  }
  if (!paths_.by_root() && place.who != paths_.self() && !place.who.may_give(uid, gid))
    throw Refusal(who + " of user " + std::to_string(uid) + ", which user " + std::to_string(place.who.uid) +
                      " could not have made",
                  "let the program bind it as its own user");
  const struct statx st = stat_socket(file);
  if (st.stx_uid != uid || st.stx_gid != gid)
    check(::fchownat(AT_FDCWD, self.c_str(), uid, gid, 0), "set the owner of", who);
  if (place.entry->has_file_perms())
    check(::chmod(self.c_str(), place.entry->file_perms().mode() & 0777), "set the mode of", who);
}

std::string UnixNames::reachable(uint32_t ino) const {
  const auto it = waiting_.find(ino);
  return it == waiting_.end() ? "" : fd_link(it->second.stage.get()) + "/" + kFile;
}

void UnixNames::publish(uint32_t ino) {
  const auto it = waiting_.find(ino);
  if (it == waiting_.end()) return;
  Waiting& w = it->second;
  const std::string who = who_is(*w.entry);
  if (w.by_root) {
    check(::renameat(w.stage.get(), kFile, w.folder.get(), w.name.c_str()), "publish", who);
  } else {
    // Beside its name first: from there whoever could make it takes the place of a stale file, in one step.
    check(::syscall(SYS_renameat2, w.stage.get(), kFile, w.folder.get(), w.hidden.c_str(), kNoReplace), "publish", who);
    paths_.attempt({w.who}, who, [&](Right right) {
      if (right == Right::root) throw Denied("its folder is that user's");
      check(::renameat(w.folder.get(), w.hidden.c_str(), w.folder.get(), w.name.c_str()), "publish", who);
    });
  }
  ::unlinkat(w.folder.get(), (w.hidden + ".d").c_str(), AT_REMOVEDIR);
  waiting_.erase(it);
}

void UnixNames::remove(Waiting& place) noexcept {
  remove_tree_at(place.folder.get(), place.hidden);
  remove_tree_at(place.folder.get(), place.hidden + ".d");
}

}  // namespace migrate

#include "core/files/hidden_sockets.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <memory>
#include <set>

#include "core/base/error.h"
#include "core/files/option_table.h"
#include "core/files/paths.h"
#include "core/files/unix_address.h"
#include "core/files/unix_names.h"
#include "core/image/magic.h"
#include "images/fdinfo.pb.h"

namespace migrate {
namespace {

/// Of their names, in bytes: they stand in a journal, which has a limit too.
constexpr size_t kMaxFolders = 1 << 20;

/// Only what we make: whoever can change the folder may have moved something else there, even root's.
void remove_tree(int at, const std::string& name, int depth) {
  const Fd there = try_open_plain(at, name, O_PATH | O_NOFOLLOW);
  struct stat st {};
  if (!there || depth > 64 || ::fstat(there.get(), &st) != 0) return;
  if (S_ISSOCK(st.st_mode)) ::unlinkat(at, name.c_str(), 0);
  if (!S_ISDIR(st.st_mode)) return;
  Fd fd = try_open_plain(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(fd ? ::fdopendir(fd.get()) : nullptr, &::closedir);
  if (!dir) return;
  (void)fd.release();
  while (const dirent* e = ::readdir(dir.get())) {
    const std::string inner = e->d_name;
    if (inner != "." && inner != "..") remove_tree(::dirfd(dir.get()), inner, depth + 1);
  }
  ::unlinkat(at, name.c_str(), AT_REMOVEDIR);
}

}  // namespace

void remove_tree_at(int folder, const std::string& name) noexcept {
  try {
    remove_tree(folder, name, 0);
  } catch (const std::exception&) {
    // No memory: it stays.
  }
}

std::vector<std::string> unix_socket_folders(const ImageSet& images) {
  std::set<std::string> folders;
  size_t bytes = 0;
  const SocketStates states(images);
  auto reader = images.read("files.img", magic::kFiles);
  img::file_entry file;
  while (reader && reader->next(file)) {
    if (file.type() != img::fd_types::UNIXSK || file.usk().deleted()) continue;
    const std::string path = clean_name(file.usk().name());
    if (path.empty() || abstract_name(path)) continue;
    const ext::SocketState* state = states.find(file.id());
    const std::string moved = state == nullptr ? "" : state->file();
    if (moved.empty() && path.front() != '/' && !file.usk().name_dir().starts_with('/'))
      continue;  // the restore refuses it
    const auto [it, fresh] = folders.insert(file_place(file.usk(), moved).folder);
    if (fresh) bytes += it->size();
    if (bytes > kMaxFolders) throw Corrupt("files.img", "too many Unix sockets in too many folders");
  }
  return {folders.begin(), folders.end()};
}

std::vector<std::string> real_folders(const std::vector<std::string>& folders, const std::string& root) {
  const Fd top = open_path(root.empty() ? "/" : root, O_PATH | O_DIRECTORY);
  std::vector<std::string> real;
  for (const std::string& folder : folders) {
    const Fd there = try_open_below(top.get(), folder, O_PATH | O_DIRECTORY);
    real.push_back(there ? read_link_at(AT_FDCWD, fd_link(there.get())) : root + folder);
  }
  return real;
}

void remove_hidden_sockets(const std::vector<std::string>& folders, const std::string& root,
                           const std::string& mark) noexcept {
  for (const std::string& folder : folders) try {
      const Fd top = open_path(root.empty() ? "/" : root, O_PATH | O_DIRECTORY);
      Fd fd = try_open_below(top.get(), folder, O_RDONLY | O_DIRECTORY);
      const std::unique_ptr<DIR, int (*)(DIR*)> dir(fd ? ::fdopendir(fd.get()) : nullptr, &::closedir);
      if (!dir) continue;
      (void)fd.release();
      while (const dirent* e = ::readdir(dir.get())) {
        const std::string name = e->d_name;
        if (name.starts_with(mark + "-")) remove_tree(::dirfd(dir.get()), name, 0);
      }
    } catch (const std::exception&) {
      // No memory, or no such folder: the names stay.
    }
}

}  // namespace migrate

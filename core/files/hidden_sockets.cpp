#include "core/files/hidden_sockets.h"

#include <dirent.h>
#include <fcntl.h>

#include <memory>
#include <set>

#include "core/base/error.h"
#include "core/files/paths.h"
#include "core/files/unix_address.h"
#include "core/image/magic.h"
#include "images/fdinfo.pb.h"

namespace migrate {
namespace {

/// Of their names, in bytes: they stand in a journal, which has a limit too.
constexpr size_t kMaxFolders = 1 << 20;

/// A folder of ours holds at most the folders of one name and a socket.
void remove_tree(int at, const char* name, int depth) {
  if (::unlinkat(at, name, 0) == 0 || depth > 64) return;
  const int fd = ::openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(fd < 0 ? nullptr : ::fdopendir(fd), &::closedir);
  if (!dir) return;
  while (const dirent* e = ::readdir(dir.get())) {
    const std::string inner = e->d_name;
    if (inner != "." && inner != "..") remove_tree(fd, inner.c_str(), depth + 1);
  }
  ::unlinkat(at, name, AT_REMOVEDIR);
}

}  // namespace

void remove_tree_at(int folder, const std::string& name) noexcept {
  try {
    remove_tree(folder, name.c_str(), 0);
  } catch (const std::exception&) {
    // No memory: it stays.
  }
}

std::vector<std::string> unix_socket_folders(const ImageSet& images) {
  std::set<std::string> folders;
  size_t bytes = 0;
  auto reader = images.read("files.img", magic::kFiles);
  img::file_entry file;
  while (reader && reader->next(file)) {
    if (file.type() != img::fd_types::UNIXSK || file.usk().deleted()) continue;
    const std::string path = clean_name(file.usk().name());
    if (path.empty() || abstract_name(path)) continue;
    std::string folder = split_path(path).folder;
    if (path.front() != '/') {
      if (!file.usk().name_dir().starts_with('/')) continue;  // the restore refuses it
      folder = file.usk().name_dir() + "/" + folder;
    }
    if (const auto [it, fresh] = folders.insert(std::move(folder)); fresh) bytes += it->size();
    if (bytes > kMaxFolders) throw Corrupt("files.img", "too many Unix sockets in too many folders");
  }
  return {folders.begin(), folders.end()};
}

void remove_hidden_sockets(const std::vector<std::string>& folders, const std::string& root,
                           const std::string& mark) noexcept {
  for (const std::string& folder : folders) try {
      const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir((root + folder).c_str()), &::closedir);
      if (!dir) continue;
      while (const dirent* e = ::readdir(dir.get())) {
        const std::string name = e->d_name;
        if (name.starts_with(mark + "-")) remove_tree(::dirfd(dir.get()), name.c_str(), 0);
      }
    } catch (const std::exception&) {
      // No memory: the names stay.
    }
}

}  // namespace migrate

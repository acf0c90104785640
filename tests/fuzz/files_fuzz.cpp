// Hostile images of files: every description is really opened, in an empty folder that is the root, and in namespaces
// of our own.
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <filesystem>

#include "core/files/hidden_sockets.h"
#include "core/files/image_tables.h"
#include "core/files/restore_files.h"
#include "fuzz.h"
#include "image_records.h"

namespace migrate::fuzz {
namespace {

/// An empty tmpfs of our own, on no path that anybody else sees.
class Root {
 public:
  Root() {
    check(::unshare(CLONE_NEWNS | CLONE_NEWNET), "make", "namespaces");
    check(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make private", "all mounts");
    check(::mount("fuzz", "/mnt", "tmpfs", MS_NOSUID, "size=64m"), "mount", "a tmpfs");
    fd_ = open_path("/mnt", O_RDONLY | O_DIRECTORY);
    std::filesystem::create_directory("/mnt/dev");
    for (const auto& [name, minor] : {std::pair{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}})
      ::mknod((std::string("/mnt/dev/") + name).c_str(), S_IFCHR | 0666, makedev(1, static_cast<unsigned>(minor)));
  }
  /// Files with plain names, so that not everything ends with the first one that is missing.
  void make(const img::reg_file_entry& entry) const {
    constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./";
    const std::string& name = entry.name();
    if (!name.starts_with('/') || name.size() > 100 || name.find("..") != std::string::npos ||
        name.find_first_not_of(kPlain) != std::string::npos || entry.size() > 1 << 20)
      return;
    const std::filesystem::path path("/mnt" + name);
    std::error_code failed;
    if (std::filesystem::exists(path, failed)) return;
    std::filesystem::create_directories(S_ISDIR(entry.mode()) ? path : path.parent_path(), failed);
    if (S_ISFIFO(entry.mode())) ::mkfifo(path.c_str(), 0600);
    if (!S_ISREG(entry.mode())) return;
    const Fd file(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (file && ::ftruncate(file.get(), static_cast<off_t>(entry.size())) != 0) return;
  }
  int fd() const { return fd_.get(); }

 private:
  Fd fd_;
};

void restore(const ImageSet& images, bool hold) {
  static const Root root;
  FileRestoreOptions options;
  options.tcp_close = options.hold_outside = hold;
  options.root_fd = root.fd();
  for (const auto& [id, entry] : read_file_entries(images))
    if (entry.has_reg()) root.make(entry.reg());
  FileRestorer files(images, options, *null_logger());
  files.shared_objects();
  for (const auto& [id, entry] : read_file_entries(images)) try {
      files.open_files({{id, static_cast<int>(flags_of(entry)), WantedFile::Use::mapped, {own_credentials()}}});
    } catch (const Error&) {  // not one with a path
    }
  files.open_all(1'000'000'000);
  if (hold) files.after_gate();
}

/// Whatever became of it: what waits under hidden names can be removed, also by who was not there.
void clear(const ImageSet& images) {
  const std::vector<std::string> folders = unix_socket_folders(images);
  real_folders(folders, "/mnt");
  remove_hidden_sockets(folders, "/mnt", FileRestoreOptions().mark);
}

}  // namespace

const Target kTarget{"files_fuzz", true};

void run(std::span<const std::byte> input) {
  const ImageSet images = images_from(records_of(input));
  try {
    restore(images, input.size() % 2 != 0);
  } catch (const Error&) {  // as it should be
  }
  try {
    clear(images);
  } catch (const Error&) {  // as it should be
  }
}

std::vector<std::vector<std::byte>> seeds() { return {}; }

}  // namespace migrate::fuzz

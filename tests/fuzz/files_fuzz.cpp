// Hostile images of files: every description is really opened, in an empty folder that is the root, and in namespaces
// of our own.
#include <sched.h>
#include <sys/mount.h>
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
    check(::mount("fuzz", "/mnt", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m"), "mount", "a tmpfs");
    fd_ = open_path("/mnt", O_RDONLY | O_DIRECTORY);
    for (const char* folder : {"/mnt/tmp", "/mnt/run", "/mnt/home"}) std::filesystem::create_directory(folder);
    for (const char* file : {"/mnt/tmp/file", "/mnt/run/file"}) open_path(file, O_CREAT | O_WRONLY, 0644);
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
  FileRestorer files(images, options, *null_logger());
  files.shared_objects();
  for (const auto& [id, entry] : read_file_entries(images)) try {
      files.open_file(id);
    } catch (const Error&) {  // not one with a path
    }
  files.open_all(1'000'000'000);
  files.after_gate();
}

}  // namespace

void run(std::span<const std::byte> input) {
  const ImageSet images = images_from(records_of(input));
  try {
    restore(images, input.size() % 2 != 0);
  } catch (const Error&) {  // as it should be
  }
}

std::vector<std::vector<std::byte>> seeds() { return {}; }

}  // namespace migrate::fuzz

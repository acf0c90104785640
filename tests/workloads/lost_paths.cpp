// Files that their paths no longer lead to: deleted folders (open and worked in), a file that has another name now, one
// that was made without a name and got one, a /proc file of a process that is gone; and descriptors that are only
// paths, of a link, a socket and a device.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "workload.h"

using namespace workload;

namespace {

int path_only(const std::string& path, mode_t type) {
  const int fd = must(open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC), "open a path");
  struct stat st {};
  expect(fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == type, path + " is of another type");
  return fd;
}

mode_t type_of(int fd) {
  struct stat st {};
  must(fstat(fd, &st), "fstat");
  return st.st_mode & S_IFMT;
}

void expect_name(int fd, const std::string& path, const std::string& content) {
  struct stat st {
  }, named{};
  must(fstat(fd, &st), "fstat");
  must(stat(path.c_str(), &named), "stat");
  expect(st.st_ino == named.st_ino, path + " is another file");
  expect_equal(st.st_nlink, 1U, "names of " + path);
  char bytes[16] = {};
  must(pread(fd, bytes, sizeof bytes - 1, 0), "pread");
  expect(content == bytes, path + " holds something else");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const std::string gone = w.path("gone"), opened = w.path("opened"), old_name = w.path("old"),
                          new_name = w.path("new"), linked = w.path("linked"), link = w.path("link"),
                          bound = w.path("socket");
        const int renamed = must(open(old_name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
        must(write(renamed, "orig", 4), "write");
        auto* mapped = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, renamed, 0));
        must(::link(old_name.c_str(), new_name.c_str()), "link");
        must(unlink(old_name.c_str()), "unlink");
        const int made = must(open(w.dir().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), "open");
        // Without O_TMPFILE in its flags, which nothing that has a name can get.
        const int unnamed = must(open(("/proc/self/fd/" + std::to_string(made)).c_str(), O_RDWR | O_CLOEXEC), "open");
        close(made);
        must(write(unnamed, "tmp1", 4), "write");
        must(linkat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(unnamed)).c_str(), AT_FDCWD, linked.c_str(),
                    AT_SYMLINK_FOLLOW),
             "linkat");
        must(symlink("nowhere", link.c_str()), "symlink");
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::snprintf(address.sun_path, sizeof address.sun_path, "%s", bound.c_str());
        const int socket = must(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        must(bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
        close(socket);
        const int link_path = path_only(link, S_IFLNK), socket_path = path_only(bound, S_IFSOCK),
                  device_path = path_only("/dev/loop-control", S_IFCHR);
        const pid_t child = must(fork(), "fork");
        if (child == 0) _exit(0);
        const int proc = must(open(("/proc/" + std::to_string(child) + "/stat").c_str(), O_RDONLY | O_CLOEXEC), "open");
        must(waitpid(child, nullptr, 0), "waitpid");
        must(mkdir(gone.c_str(), 0700), "mkdir");
        must(mkdir(opened.c_str(), 0751), "mkdir");
        const int folder = must(open(opened.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open");
        must(chdir(gone.c_str()), "chdir");
        must(rmdir(gone.c_str()), "rmdir");
        must(rmdir(opened.c_str()), "rmdir");
        w.serve([&] {
          char text[600];
          expect(getcwd(text, sizeof text) == nullptr && errno == ENOENT, "the working folder has a name");
          expect(open("x", O_RDWR | O_CREAT | O_CLOEXEC, 0600) == -1, "a deleted folder takes files");
          struct stat st {};
          must(fstat(folder, &st), "fstat");
          expect(S_ISDIR(st.st_mode) && st.st_nlink == 0 && (st.st_mode & 07777) == 0751, "the open folder is another");
          expect(access(gone.c_str(), F_OK) == -1 && access(opened.c_str(), F_OK) == -1, "a deleted folder is back");
          expect_name(renamed, new_name, "orig");
          expect(mapped[0] == 'o', "the mapping holds something else");
          expect(access(old_name.c_str(), F_OK) == -1, "the old name is back");
          expect_name(unnamed, linked, "tmp1");
          expect(pread(proc, text, sizeof text, 0) == -1 && errno == ESRCH, "a process is back");
          expect(type_of(link_path) == S_IFLNK && type_of(socket_path) == S_IFSOCK && type_of(device_path) == S_IFCHR,
                 "a path leads to something else");
        });
      },
      argv[0]);
}

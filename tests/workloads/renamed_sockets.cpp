// Unix sockets whose files were renamed since they were bound.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <string>

#include "unix_names.h"
#include "workload.h"

using namespace workload;

namespace {

struct Renamed {
  int fd;
  std::string bound, now;
};

void verify(const Renamed& r, int type) {
  sockaddr_un name{};
  socklen_t n = sizeof name;
  must(getsockname(r.fd, reinterpret_cast<sockaddr*>(&name), &n), "getsockname");
  expect(r.bound == name.sun_path, r.bound + " is called " + name.sun_path);
  expect(access(r.bound.c_str(), F_OK) == -1, r.bound + " is there again");
  struct stat st {};
  must(stat(r.now.c_str(), &st), r.now.c_str());
  expect_equal(st.st_mode & 07777, 0640U, "the mode of " + r.now);
  const int client = must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket");
  const sockaddr_un to = address(r.now, n);
  must(connect(client, reinterpret_cast<const sockaddr*>(&to), n), ("connect to " + r.now).c_str());
  must(send(client, "x", 1, 0), "send");
  char c = 0;
  if (type == SOCK_DGRAM) {
    expect(recv(r.fd, &c, 1, MSG_DONTWAIT) == 1, "nothing comes to " + r.now);
  } else {
    const int server = must(accept(r.fd, nullptr, nullptr), "accept");
    expect(recv(server, &c, 1, 0) == 1, "nothing comes to " + r.now);
    close(server);
  }
  close(client);
}

Renamed make(const std::string& from, const std::string& to, int type, bool linked) {
  const int fd = bound(from, type);
  if (type == SOCK_STREAM) must(listen(fd, 5), "listen");
  must(chmod(from.c_str(), 0640), "chmod");
  if (linked) {
    must(link(from.c_str(), to.c_str()), "link");
    must(unlink(from.c_str()), "unlink");
  } else {
    must(rename(from.c_str(), to.c_str()), "rename");
  }
  return {fd, from, to};
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        must(mkdir(w.path("other").c_str(), 0755), "mkdir");
        const Renamed listener = make(w.path("admin.tmp"), w.path("admin"), SOCK_STREAM, false);
        const Renamed moved = make(w.path("log.tmp"), w.path("other/log"), SOCK_DGRAM, false);
        const Renamed linked = make(w.path("link.tmp"), w.path("link"), SOCK_STREAM, true);
        w.serve([&] {
          verify(listener, SOCK_STREAM);
          verify(moved, SOCK_DGRAM);
          verify(linked, SOCK_STREAM);
        });
      },
      argv[0]);
}

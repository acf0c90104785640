// Where the files of Unix sockets are.
#include <sys/socket.h>
#include <sys/un.h>

#include "small.h"

namespace {

sockaddr_un named(const std::string& path) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  path.copy(a.sun_path, sizeof a.sun_path - 1);
  return a;
}

/// A connection by that name leads to `listener`.
void leads_to(const std::string& path, int listener) {
  const sockaddr_un to = named(path);
  const int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  must(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), ("connect to " + path).c_str());
  const int other = must(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), "accept");
  must(write(fd, "x", 1), "write");
  char byte = 0;
  expect(read(other, &byte, 1) == 1 && byte == 'x', "what came by " + path + " is not what was sent");
  close(other);
  close(fd);
}

int listening(const std::string& path) {
  const sockaddr_un at = named(path);
  const int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  must(bind(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at), "bind");
  must(listen(fd, 4), "listen");
  return fd;
}

/// Its name is one of that root folder: the machine's may have the folder, too, or not.
WORKLOAD(unix_sockets, in_own_root) {
  must(mkdir(place.path("jail").c_str(), 0755), "mkdir");
  must(mkdir(place.path("jail/only-here").c_str(), 0755), "mkdir");
  must(mkdir(place.path("jail/tmp").c_str(), 0755), "mkdir");
  return in_child([&] {
    allowed(chroot(place.path("jail").c_str()), "chroot");
    must(chdir("/"), "chdir");
    const std::string mine = "/tmp/small-" + std::to_string(getpid());
    const int here = listening("/only-here/s"), there = listening(mine);
    return [=] {
      leads_to("/only-here/s", here);
      leads_to(mine, there);
    };
  });
}

}  // namespace

// Unix sockets with names, in the file system or abstract (with a leading NUL).
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>
#include <string>

#include "workload.h"

namespace workload {

inline sockaddr_un address(const std::string& name, socklen_t& length) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  expect(name.size() < sizeof a.sun_path, "socket name too long: " + name);
  std::memcpy(a.sun_path, name.data(), name.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return a;
}

inline int bound(const std::string& name, int type) {
  socklen_t n = 0;
  const sockaddr_un a = address(name, n);
  const int fd = must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket");
  must(bind(fd, reinterpret_cast<const sockaddr*>(&a), n), "bind");
  return fd;
}

}  // namespace workload

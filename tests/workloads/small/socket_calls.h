// Options of sockets, for the small workloads that set and look at them.
#pragma once

#include <sys/socket.h>

#include "small.h"

namespace workload {

template <typename T>
T option(int fd, int level, int name) {
  T value{};
  socklen_t length = sizeof value;
  must(getsockopt(fd, level, name, &value, &length), "getsockopt");
  return value;
}

template <typename T>
void set(int fd, int level, int name, const T& value) {
  must(setsockopt(fd, level, name, &value, sizeof value), "setsockopt");
}

}  // namespace workload

#include "core/files/interfaces.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "core/base/error.h"
#include "core/files/option_table.h"

namespace migrate {
namespace {

Refusal is_gone(const std::string& who) {
  return {who + ", a socket bound to a network interface that is not there any more",
          "have the program close it, or bind it to another one"};
}

}  // namespace

std::string interface_name(int fd, int number, const std::string& who) {
  ifreq request{};
  request.ifr_ifindex = number;
  if (::ioctl(fd, SIOCGIFNAME, &request) != 0) {
    if (errno == ENODEV) throw is_gone(who);
    throw Error("name a network interface of", who, errno);
  }
  return {request.ifr_name, ::strnlen(request.ifr_name, sizeof request.ifr_name)};
}

int interface_number(int fd, const std::string& name, const std::string& who) {
  ifreq request{};
  if (name.empty() || name.size() >= sizeof request.ifr_name) throw Corrupt(kSocketsImage, "an interface has no name");
  name.copy(request.ifr_name, name.size());
  check(::ioctl(fd, SIOCGIFINDEX, &request), "find the network interface " + name + " for", who);
  return request.ifr_ifindex;
}

std::optional<std::string> bound_interface(int fd, const std::string& who) {
  char name[IFNAMSIZ] = {};
  socklen_t length = sizeof name;
  if (::getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &length) != 0) {
    if (errno == ENODEV) throw is_gone(who);
    return std::nullopt;  // a kind that has none
  }
  if (name[0] == '\0') return std::nullopt;
  return std::string(name, ::strnlen(name, sizeof name));
}

}  // namespace migrate

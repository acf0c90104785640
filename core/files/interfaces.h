// Network interfaces that sockets name: by number in their own network namespace, by name in the images.
#pragma once

#include <optional>
#include <string>

namespace migrate {

/// Of the namespace of socket `fd`, which need not be ours. Throws Refusal if there is none of that number any more.
std::string interface_name(int fd, int number, const std::string& who);
/// Throws Corrupt for what is no name, Error if there is none of it.
int interface_number(int fd, const std::string& name, const std::string& who);
/// That which the socket is bound to (SO_BINDTODEVICE). Throws Refusal if it is gone: unbound, the socket would hear
/// everybody.
std::optional<std::string> bound_interface(int fd, const std::string& who);

}  // namespace migrate

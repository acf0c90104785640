// Names of Unix sockets, and places to bind them in.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <functional>
#include <string>

namespace migrate {

struct UnixAddress {
  /// From the bytes of a name (abstract names start with NUL). Throws Corrupt if they do not fit.
  explicit UnixAddress(const std::string& name);
  sockaddr_un raw{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&raw); }
};

inline bool abstract_name(const std::string& name) { return !name.empty() && name.front() == '\0'; }
/// A path without the NUL that the kernel counts as part of it; abstract names as they are.
std::string clean_name(const std::string& name);

/// Runs `work` in a thread whose root folder is `root` (its working folder too), so that names that programs gave can
/// be bound there. Exceptions come back.
void with_root(int root, const std::function<void()>& work);
/// The same in an empty file system of its own that nobody else sees and that goes with its last user.
void backstage(const std::function<void()>& work);
/// Makes a folder and those above it.
void make_folders(const std::string& path);

}  // namespace migrate

// What an open file description has besides its file: the flags that F_SETFL changes, and its position.
#pragma once

#include <cstdint>
#include <string>

namespace migrate {

/// O_ASYNC comes with the owner, in the task's own shell; an O_PATH descriptor has none. `what` is for an Error.
void set_status_flags(int fd, uint32_t flags, const std::string& what);
/// Throws Corrupt for an impossible one.
void set_position(int fd, uint64_t pos, const std::string& what);

}  // namespace migrate

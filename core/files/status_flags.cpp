#include "core/files/status_flags.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/base/error.h"

namespace migrate {
namespace {
constexpr int kStatusFlags = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
}  // namespace

void set_status_flags(int fd, uint32_t flags, const std::string& what) {
  const int now = check(::fcntl(fd, F_GETFL), "read the flags of", what);
  if ((now & O_PATH) != 0) return;
  const int wanted = static_cast<int>(flags) & kStatusFlags;
  if ((now & kStatusFlags) != wanted)
    check(::fcntl(fd, F_SETFL, (now & ~kStatusFlags) | wanted), "set the flags of", what);
}

void set_position(int fd, uint64_t pos, const std::string& what) {
  if (pos > INT64_MAX) throw Corrupt("files.img", what + " has an impossible position");
  if (pos != 0) check(::lseek(fd, static_cast<off_t>(pos), SEEK_SET), "set the position in", what);
}

}  // namespace migrate

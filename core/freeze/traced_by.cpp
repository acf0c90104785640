#include "core/freeze/traced_by.h"

#include <sys/stat.h>

namespace migrate {

Refusal traced_by(const std::string& who, const std::string& tracer) {
  struct stat theirs {
  }, ours{};
  const bool ourselves = ::stat(("/proc/" + tracer + "/exe").c_str(), &theirs) == 0 &&
                         ::stat("/proc/self/exe", &ours) == 0 && theirs.st_dev == ours.st_dev &&
                         theirs.st_ino == ours.st_ino;
  if (ourselves)
    return {who + " is being dumped, or prepared for a move, by process " + tracer, "try again when that is done"};
  return {who + " is traced by task " + tracer, "detach the debugger first"};
}

}  // namespace migrate

#include "core/restore/copy_memory.h"

#include <sys/stat.h>

#include <charconv>
#include <string>
#include <string_view>

#include "core/base/fd.h"

namespace migrate {
namespace {

/// The value of a line of /proc/PID/status (names of commands are escaped there, so no line is anybody's invention).
std::string_view line_of(std::string_view status, std::string_view key) {
  const std::string begin = "\n" + std::string(key) + ":\t";
  const size_t at = status.find(begin);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = status.substr(at + begin.size());
  return rest.substr(0, rest.find('\n'));
}

uint64_t number_at(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

}  // namespace

uint64_t private_memory(pid_t pid, pid_t inner) {
  std::string status;
  try {
    status = read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid) + "/status");
  } catch (const Error&) {  // it is gone
    return 0;
  }
  const std::string_view numbers = line_of(status, "NSpid");
  const size_t last = numbers.rfind('\t');
  if (number_at(last == std::string_view::npos ? numbers : numbers.substr(last + 1)) != static_cast<uint64_t>(inner))
    return 0;
  uint64_t kib = 0;
  for (const char* key : {"RssAnon", "VmSwap", "VmPTE"}) kib += number_at(line_of(status, key));
  return kib << 10;
}

uint64_t object_memory(int fd) {
  struct stat st {};
  check(::fstat(fd, &st), "stat", "a shared memory object");
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

}  // namespace migrate

#include "core/ipc/sysv_objects.h"

#include <array>
#include <cstdio>
#include <sstream>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/base/procfs.h"

namespace migrate {
namespace {

constexpr std::array kKinds{IpcKind::segment, IpcKind::semaphores, IpcKind::queue};

const char* file_of(IpcKind kind) {
  return kind == IpcKind::segment      ? "/proc/sysvipc/shm"
         : kind == IpcKind::semaphores ? "/proc/sysvipc/sem"
                                       : "/proc/sysvipc/msg";
}

/// The columns after key, id and permissions.
void parse_rest(std::istringstream& words, IpcObject& o) {
  switch (o.kind) {
    case IpcKind::segment:
      words >> o.size >> o.creator >> o.last_a >> o.attached >> o.uid >> o.gid >> o.cuid >> o.cgid >> o.used_a >>
          o.used_b >> o.changed;
      return;
    case IpcKind::semaphores:
      words >> o.size >> o.uid >> o.gid >> o.cuid >> o.cgid >> o.used_a >> o.changed;
      return;
    case IpcKind::queue:
      uint64_t bytes = 0;
      words >> bytes >> o.size >> o.last_a >> o.last_b >> o.uid >> o.gid >> o.cuid >> o.cgid >> o.used_a >> o.used_b >>
          o.changed;
      return;
  }
}

}  // namespace

std::string IpcObject::describe() const {
  const char* what = kind == IpcKind::segment      ? "System V shared memory segment "
                     : kind == IpcKind::semaphores ? "System V semaphore set "
                                                   : "System V message queue ";
  std::array<char, 16> text;
  std::snprintf(text.data(), text.size(), "0x%x", key);
  return what + std::to_string(id) + " (key " + text.data() + ")";
}

std::string IpcObject::how_to_remove() const {
  const char* option = kind == IpcKind::segment ? "-m " : kind == IpcKind::semaphores ? "-s " : "-q ";
  return std::string("ipcrm ") + option + std::to_string(id);
}

std::vector<IpcObject> parse_sysvipc(IpcKind kind, std::string_view text) {
  std::istringstream lines{std::string(text)};
  std::string line;
  std::getline(lines, line);  // the names of the columns
  std::vector<IpcObject> all;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    IpcObject o;
    o.kind = kind;
    int64_t key = 0;  // as a signed number
    words >> key >> o.id >> std::oct >> o.mode >> std::dec;
    o.key = static_cast<uint32_t>(key);
    parse_rest(words, o);
    if (!words) throw Corrupt(file_of(kind), "a line is not as expected: " + line);
    all.push_back(o);
  }
  return all;
}

std::vector<IpcObject> list_ipc_objects() {
  std::vector<IpcObject> all;
  for (const IpcKind kind : kKinds) {
    std::string text;
    try {
      text = read_file_at(AT_FDCWD, file_of(kind), 256 << 20);
    } catch (const Error& e) {
      if (e.code() == ENOENT) continue;
      throw;
    }
    const std::vector<IpcObject> some = parse_sysvipc(kind, text);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace migrate

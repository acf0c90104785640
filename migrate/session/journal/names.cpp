// By what journals name sessions, boots and tasks.
#include <unistd.h>

#include <cstdlib>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "migrate/session/journal/journal.h"

namespace migrate {
namespace {

/// Our own time namespace shifts start times in /proc by its boot-time offset.
int64_t own_boottime_offset_ns() {
  try {
    return parse_clock_offsets(read_file_at(AT_FDCWD, "/proc/self/timens_offsets")).boottime_ns;
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;
    return 0;  // a kernel without time namespaces
  }
}

/// As the initial time namespace shows it, as nearly as whole ticks tell.
uint64_t without_own_offset(uint64_t ticks) {
  const int64_t tick = 1'000'000'000 / ::sysconf(_SC_CLK_TCK), offset = own_boottime_offset_ns();
  const int64_t part = ((offset % tick) + tick) % tick;
  const int64_t whole = (offset - part) / tick + (2 * part > tick ? 1 : 0);
  return static_cast<uint64_t>(static_cast<int64_t>(ticks) - whole);
}

}  // namespace

SessionId new_session_id() {
  SessionId id{};
  fill_random(id);
  return id;
}

std::string to_hex(const SessionId& id) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte b : id) {
    text += kDigits[std::to_integer<unsigned>(b) >> 4];
    text += kDigits[std::to_integer<unsigned>(b) & 15];
  }
  return text;
}

std::optional<SessionId> session_from_hex(std::string_view text) {
  SessionId id{};
  if (text.size() != id.size() * 2) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    unsigned digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<unsigned>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<unsigned>(c - 'a') + 10;
    } else {
      return std::nullopt;
    }
    id[i / 2] = static_cast<std::byte>((std::to_integer<unsigned>(id[i / 2]) << 4) | digit);
  }
  return id;
}

std::string cgroup_name(const SessionId& id, Role role) {
  return "migrate-" + to_hex(id) + (role == Role::source ? "" : "-in");
}

std::string lazy_cgroup_mark(const SessionId& id) { return "migrate-" + to_hex(id) + "-lazy-"; }

std::string boot_id() {
  if (const char* fake = ::getenv("MIGRATE_FAKE_BOOT_ID"); fake != nullptr && *fake != '\0') return fake;
  std::string text = read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 256);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::optional<TaskId> TaskId::of(pid_t pid) {
  try {
    return TaskId{pid, without_own_offset(ProcDir(pid).stat().start_time)};
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return std::nullopt;
  }
}

bool TaskId::is(const TaskId& other) const {
  const uint64_t apart = start_time > other.start_time ? start_time - other.start_time : other.start_time - start_time;
  return pid == other.pid && apart <= 1;
}

bool TaskId::lives() const {
  const std::optional<TaskId> now = of(pid);
  if (!now || !now->is(*this)) return false;
  try {
    const char state = ProcDir(pid).stat().state;
    return state != 'Z' && state != 'X';
  } catch (const Error& e) {
    if (!task_is_gone(e)) throw;
    return false;
  }
}

std::string JournalEntry::hidden_mark() const { return "." + cgroup_name(id, role); }

}  // namespace migrate

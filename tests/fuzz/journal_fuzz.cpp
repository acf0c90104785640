// Journals: damaged by a disk, or written by whoever can write to the state folder.
#include <filesystem>
#include <fstream>
#include <string>

#include "core/base/error.h"
#include "fuzz.h"
#include "migrate/session/journal/journal.h"

namespace migrate::fuzz {
namespace {

JournalEntry an_entry(Role role, State state) {
  JournalEntry e;
  e.id[3] = std::byte{42};
  e.role = role;
  e.state = state;
  e.label = "pid:42 (program)";
  e.peer = "192.0.2.7:7400";
  e.tasks = {{42, 1000}, {43, 1001}};
  e.init = TaskId{41, 999};
  e.socket_folders = {"/run/program"};
  e.cgroup.emplace();
  e.cgroup->folders = {"/sys/fs/cgroup/migrate-0000002a"};
  e.cgroup->came_from[42] = "/sys/fs/cgroup/user";
  e.lazy_cgroups = {"/sys/fs/cgroup/" + lazy_cgroup_mark(e.id) + "0"};
  return e;
}

/// A state folder.
class Folder {
 public:
  Folder() {
    std::string name = "/dev/shm/migrate-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw Error("make", name, errno);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  void clear() const {
    for (const auto& file : std::filesystem::directory_iterator(path_)) std::filesystem::remove(file.path());
  }
  const std::string& path() const { return path_; }
  void write(const SessionId& id, Role role, const std::string& text) const {
    std::ofstream(path_ + "/" + to_hex(id) + "." + std::string(name_of(role)) + ".journal") << text;
  }

 private:
  std::string path_;
};

/// Found in the folder: listed, or named as damaged; taken over, it goes on.
void find(const std::string& text, const JournalEntry* good) {
  static const Folder folder;
  static JournalStore store(folder.path());
  folder.clear();
  const SessionId id = good != nullptr ? good->id : SessionId{};
  const Role role = good != nullptr ? good->role : Role::source;
  folder.write(id, role, text);
  std::vector<std::string> damaged;
  const size_t listed = store.list(&damaged).size();
  demand(listed == (good != nullptr ? 1 : 0) && listed + damaged.size() == 1, "a journal that is lost");
  if (good == nullptr) return;
  for (size_t i = 0; i < std::min<size_t>(good->tasks.size(), 4); ++i) (void)good->tasks[i].lives();
  auto journal = store.take_over(id, role, good->epoch < UINT64_MAX);
  demand(journal.has_value() && journal->state() == good->state, "a journal that is another's");
  try {
    journal->step(State::aborted, Authority::kOwn, "fuzz");
  } catch (const Refusal&) {  // it stands elsewhere
  }
  const auto again = store.peek(id, role);
  demand(again && again->tasks == good->tasks && again->state == journal->state(), "a journal that changes");
}

}  // namespace

const Target kTarget{"journal_fuzz", false};

void run(std::span<const std::byte> input) {
  const std::string text(reinterpret_cast<const char*>(input.data()), input.size());
  try {
    const JournalEntry e = JournalEntry::from_json(text, "a journal");
    for (const TaskId& task : e.tasks) demand(task.pid > 0 && task.pid <= kMaxPid, "a task without a pid");
    demand(!e.init || (e.init->pid > 0 && e.init->pid <= kMaxPid), "an init without a pid");
    if (e.cgroup)
      for (const auto& [pid, folder] : e.cgroup->came_from) demand(pid > 0 && pid <= kMaxPid, "a pid out of range");
    const JournalEntry again = JournalEntry::from_json(e.to_json(), "again");
    demand(again.tasks == e.tasks && again.epoch == e.epoch && again.state == e.state, "a journal that changes");
    find(text, &e);
  } catch (const Corrupt&) {  // as it should be
    find(text, nullptr);
  }
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::vector<std::byte>> all;
  for (const auto& entry : {an_entry(Role::source, State::frozen), an_entry(Role::destination, State::prepared)}) {
    const std::string text = entry.to_json();
    const auto bytes = as_bytes_of(text);
    all.emplace_back(bytes.begin(), bytes.end());
  }
  return all;
}

}  // namespace migrate::fuzz

#include "migrate/session/guardian/huge_again.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/freeze/memory_room.h"
#include "core/memory/huge_pages.h"
#include "core/memory/track_scan.h"
#include "migrate/session/base/session.h"
#include "migrate/session/guardian/background.h"
#include "migrate/session/wire/host_facts.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kTasksFd = 3;
/// A block that the kernel was using is tried again, after all others.
constexpr int kRounds = 3;
/// The program waits while a block is made: that is to be a tenth of the time.
constexpr int kShare = 10;
constexpr milliseconds kLeastPause{10};
/// How often the journal is read while pages are missing.
constexpr milliseconds kLook{500};
/// What is free must be enough for others, too.
constexpr uint64_t kLeastMemory = 128 << 20;

struct HugeTask {
  ProcDir proc;
  Fd pidfd, pagemap;
  std::vector<uint64_t> blocks;
};

/// Of what the source named, which may be anything, as much as there is memory.
std::vector<uint64_t> complete_blocks(int pagemap, const wire::HugeAgain::Task& task) {
  std::vector<uint64_t> blocks;
  for (int i = 0; i + 1 < task.ranges_size(); i += 2) {
    const PageSet existing = scan_existing(pagemap, {task.ranges(i), task.ranges(i) + task.ranges(i + 1)});
    for (const PageSet::Range& r : existing.ranges())
      for (uint64_t at = (r.start + kHugePageSize - 1) / kHugePageSize * kHugePageSize; at + kHugePageSize <= r.end;
           at += kHugePageSize)
        blocks.push_back(at);
  }
  return blocks;
}

std::vector<HugeTask> open_tasks(const wire::HugeAgain& all) {
  std::vector<HugeTask> tasks;
  for (const wire::HugeAgain::Task& t : all.tasks()) {
    try {
      auto pidfd = open_pidfd(t.pid());
      if (!pidfd || !TaskId{t.pid(), t.start_time()}.lives()) continue;
      ProcDir proc(t.pid());
      Fd pagemap = proc.open("pagemap", O_RDONLY);
      std::vector<uint64_t> blocks = complete_blocks(pagemap.get(), t);
      tasks.push_back({std::move(proc), std::move(*pidfd), std::move(pagemap), std::move(blocks)});
    } catch (const Error&) {  // it ended
    }
  }
  return tasks;
}

/// True: it has ended.
bool pause(const HugeTask& task, milliseconds time) {
  pollfd p{task.pidfd.get(), POLLIN, 0};
  return ::poll(&p, 1, static_cast<int>(time.count())) > 0;
}

/// What follows "migrate-" in the name of a cgroup: ours, of a session, a throttle or a dump. A service, in whose
/// cgroup the program stays, may have a name that begins alike.
bool is_of_ours(std::string_view rest) {
  return rest.starts_with("cpu-") || rest.starts_with("dump-") ||
         session_from_hex(rest.substr(0, 2 * SessionId().size())).has_value();
}

/// Whoever holds it in a cgroup of ours waits for nothing less than for this.
bool is_held(const HugeTask& task) {
  constexpr std::string_view kOurs = "/migrate-";
  try {
    const std::string cgroups = task.proc.read("cgroup");
    for (size_t at = cgroups.find(kOurs); at != std::string::npos; at = cgroups.find(kOurs, at + 1))
      if (is_of_ours(std::string_view(cgroups).substr(at + kOurs.size()))) return true;
    return false;
  } catch (const Error&) {
    return true;
  }
}

/// Leaves the blocks that are worth another try. False: memory is short.
bool make_huge(HugeTask& task) {
  std::vector<uint64_t> later;
  for (const uint64_t at : task.blocks) {
    if (memory_available() < kLeastMemory) return false;
    if (is_held(task)) break;
    const Clock::time_point began = Clock::now();
    const Collapsed outcome = collapse_block(task.pidfd.get(), task.pagemap.get(), at);
    if (outcome == Collapsed::no_memory) return false;
    if (outcome == Collapsed::gone) break;
    if (outcome == Collapsed::later) later.push_back(at);
    if (outcome == Collapsed::needless) continue;
    const auto took = std::chrono::duration_cast<milliseconds>(Clock::now() - began);
    if (pause(task, std::max(kLeastPause, took * (kShare - 1)))) break;
  }
  task.blocks = std::move(later);
  return true;
}

/// False: it never will be, or nobody is left who would have anything of it.
bool becomes_whole(const JournalStore& store, const SessionId& id, const wire::HugeAgain& all) {
  const auto lives = [](const wire::HugeAgain::Task& t) { return TaskId{t.pid(), t.start_time()}.lives(); };
  for (; std::ranges::any_of(all.tasks(), lives); ::poll(nullptr, 0, static_cast<int>(kLook.count()))) {
    std::optional<JournalEntry> entry;
    try {
      entry = store.peek(id, Role::destination);
    } catch (const Error&) {  // descriptors or memory are short
      continue;
    }
    if (!entry || entry->state == State::aborted || entry->state == State::lost) return false;
    if (entry->state != State::gate_open) return true;
  }
  return false;
}

}  // namespace

wire::HugeAgain huge_tasks(std::span<const TaskId> tasks, const PagesByMemory& huge) {
  wire::HugeAgain all;
  for (const TaskId& task : tasks) {
    try {
      if (!task.lives()) continue;
      const auto inner = innermost(ProcDir(task.pid).status().at("NSpid"));
      const auto pages = huge.find({MemoryId::Kind::task, static_cast<uint64_t>(inner)});
      if (pages == huge.end()) continue;
      wire::HugeAgain::Task* t = all.add_tasks();
      t->set_pid(task.pid);
      t->set_start_time(task.start_time);
      for (const PageSet::Range& range : pages->second.ranges()) {
        t->add_ranges(range.start);
        t->add_ranges(range.end - range.start);
      }
    } catch (const Error&) {  // it ended
    }
  }
  return all;
}

void start_huge_again(const SessionId& id, const wire::HugeAgain& tasks, const std::string& wait_in) {
  const Fd file(check(::memfd_create("migrate-huge", MFD_CLOEXEC), "make", "a memory file"));
  const std::string text = tasks.SerializeAsString();
  write_full(file.get(), as_bytes_of(text), "huge pages");
  std::vector<std::string> words{"migrate", "guardian-huge", to_hex(id)};
  if (!wait_in.empty()) words.push_back(wait_in);
  const std::vector<char*> argv = argv_of(words);
  if (check(::fork(), "start", "who makes huge pages again") == 0) execute_in_background({file.get()}, argv.data());
}

int run_huge_again(int argc, char** argv, Logger& log) {
  const std::optional<SessionId> id = argc == 3 || argc == 4 ? session_from_hex(argv[2]) : std::nullopt;
  if (!id) return kRefused;
  struct stat file {};
  check(::fstat(kTasksFd, &file), "look at", "huge pages");
  std::string text(static_cast<size_t>(file.st_size), '\0');
  wire::HugeAgain all;
  if (::pread(kTasksFd, text.data(), text.size(), 0) != file.st_size || !all.ParseFromString(text))
    throw Error("read", "which pages were huge", EPROTO);
  if (argc == 4 && !becomes_whole(JournalStore(argv[3]), *id, all)) return kMoved;
  std::vector<HugeTask> tasks = open_tasks(all);
  for (int round = 0; round < kRounds; ++round) {
    for (HugeTask& task : tasks) {
      if (!make_huge(task)) {
        log.warn("memory is short: what was huge pages at the source stays small");
        return kMoved;
      }
    }
  }
  return kMoved;
}

}  // namespace migrate

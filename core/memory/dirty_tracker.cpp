#include "core/memory/dirty_tracker.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <thread>

#include "core/memory/track_objects.h"
#include "core/memory/track_runs.h"
#include "core/memory/track_set.h"
#include "core/memory/track_task.h"
#include "core/memory/track_tree.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;

std::chrono::microseconds since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
}

/// For a task that is just ending to have ended.
constexpr std::chrono::milliseconds kEnding{200};

/// What the receiver has of one memory.
struct Delivered {
  PageSet held;     ///< pages it may have anything of
  PageSet current;  ///< pages whose contents it has, if they were not written since they were protected
};

MemoryId memory_of(pid_t image_pid) { return {MemoryId::Kind::task, static_cast<uint64_t>(image_pid)}; }

void add_discards(std::vector<PageDiscard>& out, MemoryId memory, const PageSet& gone) {
  for (const PageSet::Range& r : gone.ranges()) out.push_back({memory, r.start, (r.end - r.start) / kPageSize});
}

}  // namespace

struct DirtyTracker::Impl {
  Impl(const Options& o, Logger& l) : options(o), log(l) {}

  Round next_round();
  void add_task(const LivingTask& living, Round& round);
  TrackedTask* task_for(const LivingTask& living);
  void round_of(TrackedTask& task, const LivingTask& living, Round& round, TreeLayout::Task& layout);
  std::optional<TrackedTask::Scan> scan(TrackedTask& task, Delivered& delivered, Round& round);
  std::optional<TrackedTask::Scan> scan_patiently(TrackedTask& task, Delivered& delivered, Round& round);
  void share_round(Round& round);
  void forget_absent(const TreeLayout& layout);
  void reduce(PageSource& source, Last& last);

  Options options;
  Logger& log;
  std::map<pid_t, std::unique_ptr<TrackedTask>> tasks;  ///< by our number
  std::map<pid_t, pid_t> image_pids;                    ///< of them
  std::map<MemoryId, Delivered> delivered;
  std::map<MemoryId, Delivered> before;  ///< the last round
  ObjectTracker objects;
};

TrackedTask* DirtyTracker::Impl::task_for(const LivingTask& living) {
  auto& task = tasks[living.pid];
  if (task && task->ended()) {  // another has its number now
    task.reset();
    delivered[memory_of(image_pids[living.pid])].current.clear();
  }
  if (!task) task = std::make_unique<TrackedTask>(living.pid);
  image_pids[living.pid] = living.image_pid;
  return task.get();
}

std::optional<TrackedTask::Scan> DirtyTracker::Impl::scan(TrackedTask& task, Delivered& delivered_, Round& round) {
  constexpr int kTries = 3;  // a task may exec at any moment
  for (int i = 0; i < kTries; ++i) {
    if (!task.visited() || !task.memory_is_current()) {
      delivered_.current.clear();
      const auto start = Clock::now();
      const bool visited = task.visit(options.timeout, log);
      round.visit_time += since(start);
      if (!visited) return std::nullopt;
    }
    const auto start = Clock::now();
    auto found = task.scan(options.rules);
    round.scan_time += since(start);
    if (found) return found;
  }
  return std::nullopt;
}

/// What is read of a task may be missing for a moment while one of its threads executes a program.
std::optional<TrackedTask::Scan> DirtyTracker::Impl::scan_patiently(TrackedTask& task, Delivered& delivered_,
                                                                    Round& round) {
  constexpr int kTries = 20;
  for (int i = 1;; ++i) {
    try {
      return scan(task, delivered_, round);
    } catch (const Error& e) {
      delivered_.current.clear();
      if ((e.code() != ESRCH && e.code() != ENOENT) || i == kTries || task.ends_within(std::chrono::milliseconds(5)))
        throw;
    }
  }
}

void DirtyTracker::Impl::round_of(TrackedTask& task, const LivingTask& living, Round& round, TreeLayout::Task& layout) {
  const MemoryId memory = memory_of(living.image_pid);
  Delivered& has = delivered[memory];
  auto found = scan_patiently(task, has, round);
  if (!found) found.emplace();  // left to the end
  const PageSet send = found->existing - (has.current - found->written);
  if (!send.empty()) {
    round.sources.push_back(PageSource{.memory = memory,
                                       .runs = runs_of(send, options.rules.zeros_over_contents ? has.held : PageSet()),
                                       .fd = task.memory(),
                                       .may_vanish = true});
    round.pages += round.sources.back().pages();
  }
  if (options.rules.report_discards) add_discards(round.discards, memory, has.held - found->existing);
  round.tracked_pages += found->existing.pages();
  round.untracked_private_pages += found->file_private_pages;
  has.held = found->existing;
  has.current = found->existing;
  layout.areas = std::move(found->areas);
}

/// Shared objects that the tasks have mapped: by content, or counted.
void DirtyTracker::Impl::share_round(Round& round) {
  std::vector<ObjectTracker::Found> found;
  std::map<uint64_t, uint64_t> pages;
  for (const auto& [pid, task] : tasks) {
    for (const TrackedTask::SharedObject& object : task->shared_objects()) {
      if (pages.contains(object.inode)) continue;
      struct stat st {};
      auto fd = task->open_shared(object);
      if (!fd || ::fstat(fd->get(), &st) != 0) continue;
      pages[object.inode] = static_cast<uint64_t>(st.st_blocks) * 512 / kPageSize;
      if (options.shared_anonymous && !object.memfd) found.push_back({object.inode, std::move(*fd)});
    }
  }
  ObjectTracker::Round shared = objects.round(std::move(found));
  for (PageSource& source : shared.sources) round.sources.push_back(std::move(source));
  round.discards.insert(round.discards.end(), shared.discards.begin(), shared.discards.end());
  round.layout.objects = std::move(shared.layout);
  round.pages += shared.pages;
  round.compared_shared_pages = shared.compared_pages;
  for (const auto& [inode, count] : pages)
    if (!objects.knows(inode)) round.untracked_shared_pages += count;
}

/// The receiver drops the memory of tasks that a layout does not name.
void DirtyTracker::Impl::forget_absent(const TreeLayout& layout) {
  const auto named = [&](MemoryId id) {
    return std::any_of(layout.tasks.begin(), layout.tasks.end(),
                       [&](const TreeLayout::Task& t) { return memory_of(t.pid) == id; });
  };
  std::erase_if(delivered, [&](const auto& entry) { return !named(entry.first); });
}

DirtyTracker::DirtyTracker(const Options& options, Logger& log) : impl_(std::make_unique<Impl>(options, log)) {}
DirtyTracker::~DirtyTracker() = default;

void DirtyTracker::Impl::add_task(const LivingTask& living, Round& round) {
  TreeLayout::Task layout{
      .pid = living.image_pid, .ppid = living.image_ppid, .pgid = living.pgid, .sid = living.sid, .areas = {}};
  TrackedTask* task = nullptr;
  try {
    if (!living.borrows_memory) round_of(*(task = task_for(living)), living, round, layout);
  } catch (const Error& e) {
    // Members of a running tree come and go.
    const bool gone = e.code() == ESRCH || e.code() == ENOENT || (task != nullptr && task->ends_within(kEnding));
    if (!gone) throw;
    if (living.parent == 0) throw Error("track task", std::to_string(living.pid), ESRCH);
    tasks.erase(living.pid);
    return;
  }
  round.layout.tasks.push_back(std::move(layout));
}

DirtyTracker::Round DirtyTracker::Impl::next_round() {
  Round round;
  std::vector<LivingTask> living = list_living(options.root);
  for (int i = 0; living.empty() && i < 20 && open_pidfd(options.root.get()); ++i) {  // it may be executing a program
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    living = list_living(options.root);
  }
  if (living.empty()) throw Error("track task", std::to_string(options.root.get()), ESRCH);
  for (const LivingTask& task : living) add_task(task, round);
  std::erase_if(tasks, [&](const auto& entry) {
    return std::none_of(living.begin(), living.end(), [&](const LivingTask& t) { return t.pid == entry.first; });
  });
  forget_absent(round.layout);
  share_round(round);
  return round;
}

DirtyTracker::Round DirtyTracker::next_round() {
  impl_->before = impl_->delivered;
  impl_->objects.begin();
  try {
    return impl_->next_round();
  } catch (...) {
    impl_->objects.put_back();
    // What was found written, and is not known to be written any more, will not be sent.
    impl_->delivered = impl_->before;
    for (auto& [memory, has] : impl_->delivered) has.current.clear();
    throw;
  }
}

// The receiver has what it had before; of that it is current what was not found written (all of a new memory was).
void DirtyTracker::put_back(const Round& round) {
  std::map<MemoryId, PageSet> sources;
  for (const PageSource& source : round.sources) {
    for (const PageRun& run : source.runs)
      sources[source.memory].append(run.address, run.address + run.pages * kPageSize);
  }
  for (auto& [memory, had] : impl_->before) {
    const auto now = impl_->delivered.find(memory);
    had.current = now == impl_->delivered.end() ? PageSet() : (now->second.current & had.held) - sources[memory];
  }
  impl_->delivered = impl_->before;
  impl_->objects.put_back();
}

void DirtyTracker::Impl::reduce(PageSource& source, Last& last) {
  const auto has = delivered.find(source.memory);
  if (has == delivered.end()) return;
  const auto task = std::find_if(tasks.begin(), tasks.end(), [&](const auto& entry) {
    return memory_of(image_pids[entry.first]) == source.memory;
  });
  PageSet clean;
  if (task != tasks.end() && task->second && !task->second->ended()) clean = task->second->clean();
  if (!options.rules.last_scan) clean = has->second.current;
  const PageSet unchanged = clean & has->second.current;
  PageSet anonymous, all;  // file-private pages are always sent at the end
  for (const PageRun& run : source.runs) {
    all.append(run.address, run.address + run.pages * kPageSize);
    if (run.zero_ok) anonymous.append(run.address, run.address + run.pages * kPageSize);
  }
  add_discards(last.discards, source.memory, has->second.held - all);
  std::vector<PageRun> left = runs_of(anonymous - unchanged, has->second.held);
  for (const PageRun& run : source.runs)
    if (!run.zero_ok) left.push_back(run);
  std::sort(left.begin(), left.end(), [](const PageRun& a, const PageRun& b) { return a.address < b.address; });
  source.runs = std::move(left);
}

DirtyTracker::Last DirtyTracker::last_round(std::vector<PageSource>& all) {
  Last last;
  const auto start = Clock::now();
  for (PageSource& source : all) {
    if (source.memory.kind == MemoryId::Kind::shmem) {
      impl_->objects.reduce(source, last.discards);
    } else {
      impl_->reduce(source, last);
    }
    last.pages += source.pages();
  }
  last.scan_time = since(start);
  return last;
}

void DirtyTracker::forget(MemoryId memory) {
  if (memory.kind == MemoryId::Kind::shmem) impl_->objects.forget(memory.id);
  impl_->delivered.erase(memory);
}

}  // namespace migrate

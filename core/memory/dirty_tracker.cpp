#include "core/memory/dirty_tracker.h"

#include <algorithm>
#include <map>

#include "core/memory/page_runs.h"
#include "core/memory/track_backend.h"
#include "core/memory/track_contents.h"
#include "core/memory/track_set.h"

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

std::shared_ptr<TrackBackend> real_backend(const DirtyTracker::Options& o, Logger& log) {
  return make_track_backend(o.root, o.timeout, MappingReader::shared(o.mappings), log);
}

void add_discards(std::vector<PageDiscard>& out, MemoryId memory, const PageSet& gone) {
  for (const PageSet::Range& r : gone.ranges()) out.push_back({memory, r.start, (r.end - r.start) / kPageSize});
}

}  // namespace

struct DirtyTracker::Impl {
  Impl(const Options& o, Logger& l) : options(o), log(l), backend(o.backend ? o.backend : real_backend(o, l)) {}

  Round next_round();
  void scan_all(std::vector<LivingTask>& living, Round& round);
  void add_task(const LivingTask& living, Round& round);
  TaskTracker* task_for(const LivingTask& living);
  void round_of(TaskTracker& task, const LivingTask& living, Round& round, TreeLayout::Task& layout);
  std::optional<TaskTracker::Scan> scan(TaskTracker& task, Delivered& delivered, Round& round);
  std::optional<TaskTracker::Scan> scan_patiently(TaskTracker& task, Delivered& delivered, Round& round);
  void compare(ContentTracker::Found found, Round& round);
  void compare_shared(const std::vector<LivingTask>& living, Round& round);
  void forget_absent(const TreeLayout& layout);
  void reduce(PageSource& source, Last& last);
  void compare_last(PageSource& source, Last& last) const;

  Options options;
  Logger& log;
  const std::shared_ptr<TrackBackend> backend;
  std::map<pid_t, std::unique_ptr<TaskTracker>> tasks;  ///< by our number
  std::map<pid_t, pid_t> image_pids;                    ///< of them
  std::map<MemoryId, Delivered> delivered;
  std::map<MemoryId, Delivered> before;  ///< the last round
  ContentTracker contents{options.rules};
  std::vector<ContentTracker::Found> copies;  ///< of file pages, that the scans of this round found
};

TaskTracker* DirtyTracker::Impl::task_for(const LivingTask& living) {
  auto& task = tasks[living.pid];
  if (task && task->ended()) {  // another has its number now
    task.reset();
    if (options.rules.new_memory) delivered[memory_of(image_pids[living.pid])].current.clear();
  }
  if (!task) task = backend->task(living.pid);
  image_pids[living.pid] = living.image_pid;
  return task.get();
}

std::optional<TaskTracker::Scan> DirtyTracker::Impl::scan(TaskTracker& task, Delivered& delivered_, Round& round) {
  constexpr int kTries = 3;  // a task may exec at any moment
  for (int i = 0; i < kTries; ++i) {
    if (!task.visited() || !task.memory_is_current()) {
      if (options.rules.new_memory) delivered_.current.clear();
      const auto start = Clock::now();
      const bool visited = task.visit(options.timeout, options.visit_hook, log);
      round.visit_time += since(start);
      if (!visited) return std::nullopt;
    }
    const auto start = Clock::now();
    auto found = task.scan(options.rules, options.visit_hook);
    round.scan_time += since(start);
    if (found) return found;
  }
  return std::nullopt;
}

/// What is read of a task may be missing for a moment while one of its threads executes a program.
std::optional<TaskTracker::Scan> DirtyTracker::Impl::scan_patiently(TaskTracker& task, Delivered& delivered_,
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

void DirtyTracker::Impl::round_of(TaskTracker& task, const LivingTask& living, Round& round, TreeLayout::Task& layout) {
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
  round.untracked_private_pages += found->left_pages;
  if (options.by_content) {
    copies.push_back(
        {.memory = memory, .pages = std::move(found->copies), .fd = task.visited() ? task.memory() : Fd()});
  } else {
    round.untracked_private_pages += found->copies.pages();
    std::erase_if(found->areas, [](const TreeLayout::Area& area) { return !area.file.empty(); });
  }
  has.held = found->existing;
  has.current = found->existing;
  layout.areas = std::move(found->areas);
}

void DirtyTracker::Impl::compare(ContentTracker::Found found, Round& round) {
  ContentTracker::Part part;
  contents.add(found, part);
  for (PageSource& source : part.sources) round.sources.push_back(std::move(source));
  round.discards.insert(round.discards.end(), part.discards.begin(), part.discards.end());
  round.pages += part.pages;
  round.compared_pages += part.compared_pages;
  (found.memory.kind == MemoryId::Kind::task ? round.untracked_private_pages : round.untracked_shared_pages) +=
      part.left_pages;
}

void DirtyTracker::Impl::compare_shared(const std::vector<LivingTask>& living, Round& round) {
  for (LivingObject& object : backend->shared_objects(living)) {
    if (!options.by_content) {
      round.untracked_shared_pages += object.pages.pages();
      continue;
    }
    round.layout.objects.push_back({object.id, object.bytes, object.memfd, object.name, object.segment});
    compare({.memory = {MemoryId::Kind::shmem, object.id},
             .pages = std::move(object.pages),
             .fd = std::move(object.fd),
             .zero_ok = true},
            round);
  }
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
  // Where the parent has just ended, the task has another one by now, and a place in the next round's layout.
  const auto is_parent = [&](const TreeLayout::Task& task) { return task.pid == living.image_ppid; };
  if (living.parent != 0 && std::ranges::none_of(round.layout.tasks, is_parent)) return;
  TreeLayout::Task layout = layout_of(living);
  TaskTracker* task = nullptr;
  try {
    if (!living.borrows_memory && !living.ended) round_of(*(task = task_for(living)), living, round, layout);
  } catch (const Error& e) {
    // Members of a running tree come and go.
    const bool gone = e.code() == ESRCH || e.code() == ENOENT || (task != nullptr && task->ends_within(kEnding));
    if (!gone) throw;
    log.debug("task {} cannot be tracked: {}", living.pid, e.what());
    if (living.parent == 0) throw Error("track task", std::to_string(living.pid), ESRCH);
    tasks.erase(living.pid);
    return;
  }
  round.layout.tasks.push_back(std::move(layout));
}

void DirtyTracker::Impl::scan_all(std::vector<LivingTask>& living, Round& round) {
  const auto start = Clock::now();
  const auto pause = options.rules.stop_to_clear ? backend->pause() : nullptr;
  if (pause) living = backend->living();
  for (const LivingTask& task : living) add_task(task, round);
  if (pause) round.visit_time = since(start);
}

DirtyTracker::Round DirtyTracker::Impl::next_round() {
  Round round;
  std::vector<LivingTask> living = backend->living();
  compare_shared(living, round);  // it takes long: what is written privately meanwhile is found by the scans
  copies.clear();
  scan_all(living, round);
  for (ContentTracker::Found& found : copies) compare(std::move(found), round);
  std::erase_if(tasks, [&](const auto& entry) {
    return std::none_of(living.begin(), living.end(), [&](const LivingTask& t) { return t.pid == entry.first; });
  });
  forget_absent(round.layout);
  round.last_compare = contents.last_compare_time();
  return round;
}

DirtyTracker::Round DirtyTracker::next_round() {
  impl_->before = impl_->delivered;
  impl_->contents.begin();
  try {
    return impl_->next_round();
  } catch (...) {
    impl_->contents.put_back();
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
    sources[source.memory] = sources[source.memory] | pages_of(source.runs);  // of a task there may be two
  }
  for (auto& [memory, had] : impl_->before) {
    const auto now = impl_->delivered.find(memory);
    had.current = now == impl_->delivered.end() ? PageSet() : (now->second.current & had.held) - sources[memory];
  }
  impl_->delivered = impl_->before;
  impl_->contents.put_back();
}

void DirtyTracker::Impl::reduce(PageSource& source, Last& last) {
  const auto has = delivered.find(source.memory);
  if (has == delivered.end()) return;
  const auto task = std::find_if(tasks.begin(), tasks.end(), [&](const auto& entry) {
    return memory_of(image_pids[entry.first]) == source.memory;
  });
  const PageSet& current = has->second.current;
  PageSet unchanged;
  if (task != tasks.end() && task->second && !task->second->ended())
    unchanged = task->second->clean(current, last.written[source.memory]);
  if (!options.rules.last_scan) unchanged = current;
  PageSet anonymous, all;
  PageSource others{.memory = source.memory, .fd = source.fd.dup()};  // copies of file pages, and the vdso
  for (const PageRun& run : source.runs) {
    all.append(run.address, run.address + run.pages * kPageSize);
    if (run.zero_ok) anonymous.append(run.address, run.address + run.pages * kPageSize);
    if (!run.zero_ok) others.runs.push_back(run);
  }
  compare_last(others, last);
  add_discards(last.discards, source.memory, has->second.held - all);
  std::vector<PageRun> left = runs_of(anonymous - unchanged, has->second.held);
  left.insert(left.end(), others.runs.begin(), others.runs.end());
  std::sort(left.begin(), left.end(), [](const PageRun& a, const PageRun& b) { return a.address < b.address; });
  source.runs = std::move(left);
}

std::vector<StopMark> DirtyTracker::stops() const {
  std::vector<StopMark> all;
  for (const auto& [pid, task] : impl_->tasks) {
    const std::vector<StopMark> some = task->stops();
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

std::map<pid_t, uint32_t> DirtyTracker::securebits() const {
  std::map<pid_t, uint32_t> all;
  for (const auto& [pid, task] : impl_->tasks)
    if (task && task->securebits() != 0) all[pid] = task->securebits();
  return all;
}

void DirtyTracker::Impl::compare_last(PageSource& source, Last& last) const {
  const auto start = Clock::now();
  contents.reduce(source, last.discards);
  last.compare_time += since(start);
}

DirtyTracker::Last DirtyTracker::last_round(std::vector<PageSource>& all) {
  Last last;
  const auto start = Clock::now();
  for (PageSource& source : all) {
    if (source.memory.kind == MemoryId::Kind::shmem) {
      impl_->compare_last(source, last);
    } else {
      impl_->reduce(source, last);
    }
    last.pages += source.pages();
  }
  last.scan_time = since(start);
  return last;
}

void DirtyTracker::forget(MemoryId memory) {
  impl_->contents.forget(memory);
  impl_->delivered.erase(memory);
}

}  // namespace migrate

#include "core/dump/dump.h"

#include <algorithm>
#include <future>
#include <map>
#include <set>

#include "core/base/proc_values.h"
#include "core/base/refusals.h"
#include "core/base/standby.h"
#include "core/dump/dump_memory.h"
#include "core/dump/memory_scan.h"
#include "core/dump/preflight.h"
#include "core/dump/task_memory.h"
#include "core/dump/tree_images.h"
#include "core/dump/tree_ipc.h"
#include "core/files/dump_files.h"
#include "core/freeze/outside_sharing.h"
#include "core/image/magic.h"
#include "core/inject/harvest.h"
#include "core/memory/lazy_pages.h"
#include "core/memory/page_files.h"
#include "core/task/core_image.h"
#include "core/task/interrupted_calls.h"
#include "core/task/timer_signals.h"
#include "images/stats.pb.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t microseconds_since(Clock::time_point start) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count());
}

FileDumpOptions file_options(const DumpOptions& o, std::optional<int64_t> as_of_ns = {}) {
  FileDumpOptions files{o};
  files.terminals = o.terminals;
  files.as_of_ns = as_of_ns;
  files.advice = o.advice;
  return files;
}

void check_sessions(const std::vector<ProcDir>& tasks, const DumpOptions& options) {
  if (!options.shell_job && !options.allow_outside_session) check_sessions(tasks);
}

/// Cheap enough to be checked again when the tree is stopped.
void check_tree(const std::vector<ProcDir>& tasks, const DumpOptions& options) {
  check_namespaces(tasks);
  check_sessions(tasks, options);
}

/// What a task's CLOCK_MONOTONIC is ahead of the initial time namespace's.
int64_t clock_offset_ns(const ProcDir& task) {
  try {
    return parse_clock_offsets(task.read("timens_offsets")).monotonic_ns;
  } catch (const Error& e) {
    if (e.code() != ENOENT) throw;  // kernels without time namespaces
    return 0;
  }
}

bool alive(const StoppedTask& task) { return task.state != TaskState::zombie; }

/// Folders of the tasks, opened again: those of the tree stay where they are.
std::vector<ProcDir> folders(const std::vector<StoppedTask>& tasks) {
  std::vector<ProcDir> all;
  all.reserve(tasks.size());
  for (const StoppedTask& task : tasks) all.emplace_back(task.pid.get());
  return all;
}

}  // namespace

struct Dump::Impl {
  Impl(const DumpOptions& o, Logger& l) : options(o), log(l), mappings(MappingReader::shared(o.mappings)) {}

  void run();
  void foresee();
  void look_around();
  void stop();
  void look_again();
  std::future<void> look_for_sharing();
  void visit();
  void tell_as_of(TaskHarvest& harvested, const std::vector<PosixTimer>& listed, int64_t before_ns);
  void look_for_lazy(const StoppedTask& task, pid_t image_pid);
  void scan_memory();
  void describe_task_images(size_t index, MemoryDumper& memory);
  std::vector<ext::ThreadExt> describe_core(const StoppedTask& task, uint32_t ordinal);

  DumpOptions options;
  Logger& log;
  std::shared_ptr<const MappingReader> mappings;
  DumpStats stats;
  ImageSet images;
  SleepSurvey survey;
  Clock::time_point frozen_since;
  int64_t as_of_ns = 0;  ///< CLOCK_MONOTONIC, ours, when the root's was what the images have: all times are as of then
  std::map<pid_t, std::vector<Vma>> foreseen;
  std::vector<std::pair<ProcDir, std::vector<Vma>>> believed;  ///< of `foreseen`, what the images rely on
  std::future<void> second_look;                               // destroyed, and waited for, after the tree was let go
  std::unique_ptr<StoppedTree> tree;                           // before what needs the tree stopped: destroyed after it
  MemoryScan memory_scan;
  std::unique_ptr<ImagePids> pids;
  std::map<Pid, TaskHarvest> harvests;
  std::map<Pid, std::vector<PosixTimer>> timers;
  std::map<Pid, std::set<int>> timers_sent;  ///< those that had signals in queues when they were read
  std::map<Tid, EarlyThread> early;
  std::map<Pid, Fd> mems;
  DomainWitnesses witnesses;
  std::set<pid_t> outside;  ///< who was there before the stop, and did not share
  Standby sharing_look;
  CgroupSets cgroups;
  std::unique_ptr<FileDumper> files;
  TreeIpc ipc;
  std::vector<PageSource> memories;
  PagesByMemory lazy;
  LazyShared shared;
};

void Dump::Impl::foresee() {
  if (!options.foresee_mappings) return;
  for (const ProcDir& task : collect_tree(options.root)) foreseen[task.pid()] = foresee_mappings(task, *mappings);
}

/// What takes its time, while nobody stands still: witnesses are forked, and all that others share is looked for.
void Dump::Impl::look_around() {
  std::vector<pid_t> living;
  std::set<pid_t> inside;
  for (const ProcDir& task : collect_tree(options.root)) {
    inside.insert(task.pid());
    try {
      if (is_zombie(task)) continue;
      living.push_back(task.pid());
    } catch (const Error& e) {
      if (!task_is_gone(e)) throw;
      continue;  // it ended meanwhile
    }
    try {
      witnesses.for_task(task, task.status());
    } catch (const Error&) {  // shows in its visit
    }
  }
  ipc.look_around(collect_tree(options.root));
  outside = processes_outside(inside);
  refuse_outside_sharing(living, inside);
}

/// A thread of ours compares the flags that were believed with what smaps tells now.
void Dump::Impl::look_again() {
  if (believed.empty()) return;
  const uint32_t ignored = options.tracked ? static_cast<uint32_t>(VmFlag::uffd_wp) : 0;
  second_look = std::async(std::launch::async, [believed = std::move(believed), ignored] {
    for (const auto& [proc, then] : believed) {
      const Vma* changed = changed_flags(then, parse_smaps(proc.read("smaps")), ignored);
      if (changed != nullptr)
        throw Error("task " + std::to_string(proc.pid()) + " changed the flags of its " + changed->describe() +
                    " while it was being stopped; try again");
    }
  });
}

void Dump::Impl::stop() {
  survey = SleepSurvey(collect_tree(options.root));
  if (options.earlier_sleeps) survey.recall(*options.earlier_sleeps, options.stops);
  if (options.before_stop) options.before_stop();
  const auto start = Clock::now();
  stats.stopping_since_ns = monotonic_ns();
  tree = std::make_unique<StoppedTree>(options.root, StoppedTree::Options{.timeout = options.timeout}, log);
  for (StoppedTask& task : tree->tasks()) mend_interrupted(task, survey);
  frozen_since = Clock::now();
  stats.freezing_time = microseconds_since(start);
  check_tree(folders(tree->tasks()), options);
  pids = std::make_unique<ImagePids>(tree->tasks());
}

/// Looks, in a thread of its own, for tasks that share with the tree and were made meanwhile.
std::future<void> Dump::Impl::look_for_sharing() {
  std::vector<pid_t> living;
  std::set<pid_t> inside;
  for (const StoppedTask& task : tree->tasks()) {
    inside.insert(task.pid.get());
    if (alive(task)) living.push_back(task.pid.get());
  }
  return sharing_look.begin([this, living = std::move(living), inside = std::move(inside)] {
    refuse_outside_sharing(living, inside, outside);
  });
}

/// Brings all times to one clock, that of the images, which is the root's right before its timers were read. Never more
/// than is true, whatever a task tells: its timers would end early.
void Dump::Impl::tell_as_of(TaskHarvest& harvested, const std::vector<PosixTimer>& listed, int64_t before_ns) {
  const auto to_ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000 + t.tv_nsec; };
  const int64_t now = monotonic_ns();
  if (harvested.pid == tree->root().pid) {
    const int64_t here =
        to_ns(harvested.monotonic) - clock_offset_ns(tree->root().proc) + clock_offset_ns(ProcDir(::getpid()));
    as_of_ns = here < before_ns || here > now ? before_ns : here;
    return count_back(harvested, listed, 0);
  }
  const int64_t ago = to_ns(harvested.monotonic) - to_ns(harvests.at(tree->root().pid).monotonic);
  count_back(harvested, listed, ago < before_ns - as_of_ns || ago > now - as_of_ns ? now - as_of_ns : ago);
}

/// What must be read before anything runs in the tasks, then the visits, the root's first.
void Dump::Impl::visit() {
  for (StoppedTask& task : tree->tasks()) {
    if (!alive(task)) continue;
    mems.emplace(task.pid, task.proc.open("mem", O_RDONLY));
    for (const StoppedThread& thread : task.threads)
      early.emplace(thread.tid, read_early(thread, task.proc.thread(thread.tid.get())));
    std::vector<PosixTimer>& listed = timers[task.pid] = parse_timers(task.proc.read("timers"));
    std::vector<int> ids;
    ids.reserve(listed.size());
    for (const PosixTimer& timer : listed) ids.push_back(timer.id);
    if (!ids.empty()) timers_sent[task.pid] = timers_with_signals(task);
    const int64_t before = monotonic_ns();
    TaskHarvest& harvested =
        harvests.emplace(task.pid, harvest(task, ids, log, options.visit_hook, &witnesses)).first->second;
    tell_as_of(harvested, listed, before);
  }
}

/// One a thread, the leader's first.
std::vector<ext::ThreadExt> Dump::Impl::describe_core(const StoppedTask& task, uint32_t ordinal) {
  const TaskHarvest& harvested = harvests.at(task.pid);
  const TimersRead read{timers.at(task.pid), harvested, timers_sent[task.pid], as_of_ns};
  const uint32_t cg_set = cgroups.add(task.proc);
  std::vector<ext::ThreadExt> extras;
  for (size_t i = 0; i < task.threads.size(); ++i) {
    const StoppedThread& thread = task.threads[i];
    const pid_t image_tid = pids->of(thread.tid.get());
    const auto of_thread = std::find_if(harvested.threads.begin(), harvested.threads.end(),
                                        [&](const ThreadHarvest& h) { return h.tid == thread.tid; });
    if (of_thread == harvested.threads.end())
      throw Error("collect the state of thread", std::to_string(thread.tid.get()), ESRCH);
    img::core_entry core;
    extras.push_back(describe_thread({.thread = thread,
                                      .proc = task.proc.thread(thread.tid.get()),
                                      .harvest = *of_thread,
                                      .early = early.at(thread.tid),
                                      .sleep = survey.find(thread.tid.get()),
                                      .as_of_ns = as_of_ns,
                                      .image_tid = image_tid,
                                      .mem_fd = mems.at(task.pid).get()},
                                     core));
    core.mutable_thread_core()->set_cg_set(cg_set);
    drop_later_signals(read, monotonic_ns(), *core.mutable_thread_core()->mutable_signals_p());
    if (i == 0) {
      describe_task(task, harvested, timers.at(task.pid), *pids, core);
      drop_later_signals(read, monotonic_ns(), *core.mutable_tc()->mutable_signals_s());
      core.mutable_tc()->set_cg_set(cg_set);
      const ProcStat stat = task.proc.stat();
      if (task.state == TaskState::group_stopped && stat.exit_code == 0)  // proc(5): what wait(2) would tell
        extras.front().mutable_task()->set_stop_collected(true);
      if (stat.exit_signal != SIGCHLD && task.pid != tree->root().pid)
        extras.front().mutable_task()->set_exit_signal(static_cast<uint32_t>(stat.exit_signal));
      fill_task_ids(ordinal, files->files_id(task.pid), ipc.own_namespace(), *core.mutable_ids());
      images.put(image_name("ids", static_cast<uint64_t>(image_tid)), magic::kIds, core.ids());
      images.put(image_name("creds", static_cast<uint64_t>(image_tid)), magic::kCreds, core.thread_core().creds());
    }
    images.put(image_name("core", static_cast<uint64_t>(image_tid)), magic::kCore, core);
  }
  return extras;
}

void Dump::Impl::scan_memory() {
  std::vector<MemoryScan::Task> tasks;
  for (const StoppedTask& task : tree->tasks())
    if (alive(task)) tasks.push_back({&task.proc, &foreseen[task.pid.get()]});
  memory_scan.begin(std::move(tasks), *mappings);
}

void Dump::Impl::look_for_lazy(const StoppedTask& task, pid_t image_pid) {
  std::vector<img::core_entry> cores(task.threads.size());
  for (size_t i = 0; i < cores.size(); ++i) {
    const auto tid = static_cast<uint64_t>(pids->of(task.threads[i].tid.get()));
    images.need(image_name("core", tid), magic::kCore, cores[i]);
  }
  img::mm_entry mm;
  images.need(image_name("mm", static_cast<uint64_t>(image_pid)), magic::kMm, mm);
  const PageSet eager = eager_pages(mm, cores, mems.at(task.pid).get());
  lazy.emplace(MemoryId{MemoryId::Kind::task, static_cast<uint64_t>(image_pid)}, migrate::lazy_pages(mm, eager));
  if (options.lazy_shared) shared.add_task(mm, eager);
}

void Dump::Impl::describe_task_images(size_t index, MemoryDumper& memory) {
  const StoppedTask& task = tree->tasks()[index];
  const pid_t image_pid = pids->of(task.pid.get());
  if (!alive(task)) {
    img::core_entry core;
    describe_zombie(task, core);
    images.put(image_name("core", static_cast<uint64_t>(image_pid)), magic::kCore, core);
    images.write("migrate-ext.img", magic::kMigrateExt).entry(describe_ended(task, image_pid));
    return;
  }
  std::vector<ext::ThreadExt> extras = describe_core(task, static_cast<uint32_t>(index + 1));
  write_fs(task, image_pid, *files, images);
  const auto start = Clock::now();
  TaskMemory found = memory_scan.take(task.pid.get());
  if (found.foreseen) believed.emplace_back(ProcDir(task.pid.get()), std::move(foreseen[task.pid.get()]));
  memory.add_task(task, harvests.at(task.pid), std::move(found), image_pid, *extras.front().mutable_task());
  if (options.lazy) look_for_lazy(task, image_pid);
  stats.memdump_time += microseconds_since(start);
  ImageWriter writer = images.write("migrate-ext.img", magic::kMigrateExt);
  for (const ext::ThreadExt& extra : extras) writer.entry(extra);
}

void Dump::Impl::run() {
  foresee();
  look_around();
  stop();
  if (!alive(tree->root()))
    throw Refusal("task " + std::to_string(options.root.get()) + " is a zombie", "there is nothing left to move");
  std::future<void> sharing = look_for_sharing();
  visit();
  log.debug("visited after {} us", microseconds_since(frozen_since));
  scan_memory();
  files = std::make_unique<FileDumper>(tree->tasks(), file_options(options, as_of_ns), images, log);
  files->dump_descriptors();
  log.debug("descriptors described after {} us", microseconds_since(frozen_since));
  MemoryDumper memory(*files, images, options.tracked, log);
  ipc.describe(folders(tree->tasks()), *pids, images);
  memory.add_segments(ipc.segment_sizes(), ipc.take_unattached());
  for (size_t i = 0; i < tree->tasks().size(); ++i) describe_task_images(i, memory);
  memories = memory.finish();
  lazy.merge(shared.take());
  log.debug("described after {} us", microseconds_since(frozen_since));
  write_pstree(tree->tasks(), *pids, images);
  write_timens(harvests.at(tree->root().pid), images);
  cgroups.write(images);
  write_inventory(options.tcp_close, images);
  for (const PageSource& source : memories) stats.pages_scanned += source.pages();
  sharing.get();
  files->finish();  // last: what is in doubt has had the most time
}

namespace {

void preflight_once(const DumpOptions& options, const MappingReader& mappings, Logger& log) {
  const std::vector<ProcDir> tasks = collect_tree(options.root);
  if (is_zombie(tasks.front()))
    throw Refusal("task " + std::to_string(options.root.get()) + " is a zombie", "there is nothing left to move");
  check_namespaces(tasks);  // those of others hide what the rest looks at
  check_frozen(tasks);
  Refusals refusals;
  refusals.ask([&] { check_sessions(tasks, options); });
  refusals.ask([&] { check_threads(tasks); });
  refusals.ask([&] { check_sharing(tasks); });
  refusals.ask([&] { check_visits(tasks); });
  refusals.ask([&] { TreeIpc::preflight(tasks); });
  refusals.ask([&] { check_mappings(tasks, mappings, options.tracked); });
  refusals.ask([&] { FileDumper::preflight(tasks, file_options(options), log); });
  refusals.demand_none();
}

}  // namespace

std::shared_ptr<const SleepSurvey> Dump::survey_sleeps(Pid root) {
  return std::make_shared<SleepSurvey>(collect_tree(root));
}

void Dump::preflight(const DumpOptions& options, Logger& log) {
  constexpr int kTries = 5;
  const std::shared_ptr<const MappingReader> mappings = MappingReader::shared(options.mappings);
  for (int tries = 1;; ++tries) {
    try {
      return preflight_once(options, *mappings, log);
    } catch (const Error& e) {
      // Members of a running tree come and go: what was looked at may have ended.
      if ((e.code() != ESRCH && e.code() != ENOENT) || tries == kTries || !open_pidfd(options.root.get())) throw;
    }
  }
}

Dump::Dump(const DumpOptions& options, Logger& log) : impl_(std::make_unique<Impl>(options, log)) { impl_->run(); }
Dump::~Dump() = default;
Dump::Dump(Dump&&) noexcept = default;

StoppedTree& Dump::tree() { return *impl_->tree; }
void Dump::tree_is_dead() noexcept { impl_->files->tree_is_dead(); }
const std::vector<HeldLock>& Dump::locks() const { return impl_->files->locks(); }
void Dump::keep_links() noexcept { impl_->files->keep_links(); }
std::vector<IpcObject> Dump::left_behind() const { return impl_->ipc.left_behind(); }
ImageSet& Dump::images() { return impl_->images; }
const PagesByMemory& Dump::lazy_pages() const { return impl_->lazy; }
std::vector<PageSource>& Dump::memories() { return impl_->memories; }

void Dump::look_again() { impl_->look_again(); }

void Dump::check_foreseen() {
  impl_->look_again();
  if (impl_->second_look.valid()) impl_->second_look.get();
}

DumpStats& Dump::stats() {
  impl_->stats.frozen_time = microseconds_since(impl_->frozen_since);
  return impl_->stats;
}

void write_page_images(Dump& dump, int dirfd) {
  const auto start = Clock::now();
  const uint64_t written = write_pages(dump.memories(), dump.images(), dirfd);
  dump.stats().pages_written = written;
  dump.stats().memwrite_time = microseconds_since(start);
}

void write_dump_stats(const DumpStats& stats, int dirfd) {
  const auto clamp = [](uint64_t us) { return static_cast<uint32_t>(std::min<uint64_t>(us, UINT32_MAX)); };
  img::stats_entry entry;
  img::dump_stats_entry& out = *entry.mutable_dump();
  out.set_freezing_time(clamp(stats.freezing_time));
  out.set_frozen_time(clamp(stats.frozen_time));
  out.set_memdump_time(clamp(stats.memdump_time));
  out.set_memwrite_time(clamp(stats.memwrite_time));
  out.set_pages_scanned(stats.pages_scanned);
  out.set_pages_skipped_parent(stats.pages_in_parent);
  out.set_pages_written(stats.pages_written);
  out.set_pages_lazy(stats.pages_lazy);
  ImageSet images;
  images.put("stats-dump", magic::kStats, entry);
  images.save(dirfd);
}

}  // namespace migrate

// HeldTree over Dump, RestoredTree over Restore.
#include "migrate/session/journal/trees.h"

#include <algorithm>

#include "core/freeze/quick_moves.h"
#include "core/inject/lock_visit.h"
#include "core/inject/visit_places.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

/// Where a task has its [vdso]; empty: nowhere. `mem` is its open /proc/PID/mem.
RemoteRange vdso_of(int mem) {
  std::string path = read_link_at(AT_FDCWD, fd_link(mem));
  path = path.substr(0, path.rfind('/')) + "/maps";
  for (const MapsLine& line : parse_maps(read_file_at(AT_FDCWD, path, 256 << 20)))
    if (line.name == "[vdso]") return line.range;
  return {};
}

/// The code of the vdso belongs into image files. A migration does not carry it: the destination maps its own kernel's,
/// and refuses one that is laid out differently.
void drop_vdso(std::vector<PageSource>& memories) {
  for (PageSource& source : memories) {
    if (source.memory.kind != MemoryId::Kind::task) continue;
    const RemoteRange vdso = vdso_of(source.fd.get());
    std::erase_if(source.runs, [&](const PageRun& run) { return vdso.contains(RemoteAddr(run.address)); });
  }
}

class DumpedTree final : public HeldTree {
 public:
  DumpedTree(DumpOptions options, Logger& log) : options_(std::move(options)), log_(log) {}

  void stop() override {
    moves_.emplace();
    options_.before_stop = [this] { moves_->wait(); };
    dump_.emplace(options_, log_);
    // Who has ended before is not missed.
    for (const StoppedTask& task : dump_->tree().tasks()) {
      if (task.state == TaskState::zombie) continue;
      if (const auto id = TaskId::of(task.pid.get())) tasks_.push_back(*id);
    }
    drop_vdso(dump_->memories());
  }

  void give_up_locks(const std::vector<HeldLock>& locks) override {
    refuse_waiters_outside(locks, pids());
    locks_ = locks;
    migrate::give_up_locks(dump_->tree().tasks(), locks_, log_, options_.visit_hook);
    without_locks_ = true;
  }

  FreezerCgroup::Record hold(const std::string& cgroup_name) override {
    std::vector<Pid> living;
    for (const StoppedTask& task : dump_->tree().tasks()) {
      if (task.state != TaskState::zombie) living.push_back(task.pid);
    }
    held_.emplace(FreezerCgroup::hold(living, cgroup_name));
    try {
      held_->freeze(options_.timeout);
    } catch (...) {
      held_->dissolve();
      held_.reset();
      throw;
    }
    dump_->tree().release();
    moves_->end();
    return held_->record();
  }

  std::vector<std::string> run_on() override {
    moves_.reset();
    std::vector<std::string> lost;
    if (held_) {
      lost = run_on_with_locks(
          locks_, pids(), [this] { held_->dissolve(); }, log_);
    } else if (without_locks_) {
      lost = take_locks(dump_->tree().tasks(), locks_, log_);
    } else {
      // The visit failed: its task finds its way back when it is let go, and must not be visited before.
      dump_.reset();
      lost = run_on_with_locks(
          locks_, pids(), [] {}, log_);
    }
    for (const std::string& sentence : lost) log_.error("{}", sentence);
    locks_.clear();
    held_.reset();
    dump_.reset();
    return lost;
  }

  std::vector<TaskId> tasks() const override { return tasks_; }
  const ImageSet& images() const override { return dump_->images(); }
  std::vector<PageSource>& memories() override { return dump_->memories(); }
  const PagesByMemory& lazy_pages() const override { return dump_->lazy_pages(); }
  std::vector<IpcObject> left_behind() const override { return dump_->left_behind(); }
  std::vector<HeldLock> locks() const override { return dump_->locks(); }
  int64_t stopping_since_ns() const override { return dump_->stats().stopping_since_ns; }
  void look_again() override {
    moves_.reset();
    dump_->look_again();
  }
  void check() override { dump_->check_foreseen(); }

 private:
  std::vector<Pid> pids() const {
    std::vector<Pid> pids;
    for (const TaskId& task : tasks_)
      if (task.lives()) pids.emplace_back(task.pid);
    return pids;
  }

  DumpOptions options_;
  Logger& log_;
  mutable std::optional<Dump> dump_;
  std::optional<FreezerCgroup> held_;
  std::optional<QuickMoves> moves_;  ///< from before the tree stops until it is held
  std::vector<TaskId> tasks_;
  std::vector<HeldLock> locks_;  ///< given up, all or some ...
  bool without_locks_ = false;   ///< ... and all
};

class BuiltTree final : public RestoredTree {
 public:
  BuiltTree(RestoreOptions options, Logger& log) : cgroups_(options.cgroups), restore_(std::move(options), log) {}

  FreezerCgroup::Record make_gate(const std::string& cgroup_name) override {
    gate_.emplace(FreezerCgroup::create_below(cgroups_, cgroup_name));
    return gate_->record();
  }

  Room warm(const TreeLayout& layout) override {
    Room room;
    room.cold = restore_.warm(layout, gate());
    room.targets = restore_.take_fill_targets();
    return room;
  }

  void discard_pages(std::span<const PageDiscard> discards) override { restore_.discard_pages(discards); }
  void reserve_pages(std::span<const PageReserve> pages) override { restore_.reserve_pages(pages); }

  Room prepare(const ImageSet& images) override {
    images_ = &images;
    restore_.prepare(images, gate());
    return {restore_.take_fill_targets(), restore_.cold()};
  }

  uint64_t memory_bytes() override { return restore_.memory_bytes(); }
  void finish(const PagesByMemory& missing) override { restore_.finish(*images_, missing); }
  std::vector<LazyMemory> take_lazy_memories() override { return restore_.take_lazy_memories(); }
  void open_gate() override { restore_.open_gate(); }

  void discard() override {
    restore_.discard();
    if (gate_) {
      gate_->kill_all(milliseconds(10'000));
      gate_->dissolve();
    }
    gate_.reset();
  }
  void leave_alone() noexcept override { restore_.leave_alone(); }

  std::vector<TaskId> tasks() const override {
    std::vector<TaskId> ids;
    for (const Pid pid : restore_.tasks()) {
      if (const auto id = TaskId::of(pid.get())) ids.push_back(*id);
    }
    return ids;
  }

  std::optional<TaskId> init() const override {
    return restore_.init().get() > 0 ? TaskId::of(restore_.init().get()) : std::nullopt;
  }

 private:
  FreezerCgroup* gate() { return gate_ ? &*gate_ : nullptr; }

  std::vector<std::string> cgroups_;
  Restore restore_;
  const ImageSet* images_ = nullptr;
  std::optional<FreezerCgroup> gate_;
};

}  // namespace

std::unique_ptr<HeldTree> dump_tree(DumpOptions options, Logger& log) {
  return std::make_unique<DumpedTree>(std::move(options), log);
}

std::unique_ptr<RestoredTree> restore_tree(RestoreOptions options, Logger& log) {
  return std::make_unique<BuiltTree>(std::move(options), log);
}

}  // namespace migrate

#include "core/memory/track_backend.h"

#include <thread>

#include "core/base/features.h"
#include "core/base/procfs.h"
#include "core/freeze/stopped_tree.h"
#include "core/memory/soft_dirty.h"
#include "core/memory/track_task.h"

namespace migrate {
namespace {

/// What both have in common: the tasks of a real tree.
class RealTree : public TrackBackend {
 public:
  explicit RealTree(Pid root) : root_(root) {}
  std::vector<LivingTask> living() override {
    std::vector<LivingTask> all = list_living(root_, true);
    for (int i = 0; all.empty() && i < 20 && open_pidfd(root_.get()); ++i) {  // it may be executing a program
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      all = list_living(root_, true);
    }
    if (all.empty()) throw Error("track task", std::to_string(root_.get()), ESRCH);
    return all;
  }
  std::vector<LivingObject> shared_objects(const std::vector<LivingTask>& living) override {
    return find_shared_objects(living);
  }

 protected:
  Pid root_;
};

class ProtectingBackend final : public RealTree {
 public:
  ProtectingBackend(Pid root, std::shared_ptr<const MappingReader> mappings)
      : RealTree(root), mappings_(std::move(mappings)) {}
  std::unique_ptr<TaskTracker> task(pid_t pid) override {
    return std::make_unique<TrackedTask>(pid, mappings_, witnesses_);
  }

 private:
  std::shared_ptr<const MappingReader> mappings_;
  std::shared_ptr<DomainWitnesses> witnesses_ = std::make_shared<DomainWitnesses>();
};

/// The bits cannot be read and cleared in one step: nobody may write between the two, neither a thread of the task nor
/// another task of the tree (process_vm_writev(2)). So all are stopped for that.
class SoftDirtyBackend final : public RealTree {
 public:
  SoftDirtyBackend(Pid root, std::chrono::milliseconds timeout, Logger& log)
      : RealTree(root), timeout_(timeout), log_(log) {}
  std::unique_ptr<Pause> pause() override {
    struct Stopped final : Pause {
      explicit Stopped(StoppedTree t) : tree(std::move(t)) {}
      StoppedTree tree;
    };
    return std::make_unique<Stopped>(StoppedTree(root_, {.timeout = timeout_}, log_));
  }
  std::unique_ptr<TaskTracker> task(pid_t pid) override {
    return std::make_unique<SoftDirtyTask>(real_soft_dirty_files(pid));
  }

 private:
  std::chrono::milliseconds timeout_;
  Logger& log_;
};

}  // namespace

std::unique_ptr<TrackBackend> make_track_backend(Pid root, std::chrono::milliseconds timeout,
                                                 std::shared_ptr<const MappingReader> mappings, Logger& log) {
  switch (probe_dirty_tracking()) {
    case DirtyTracking::write_protection:
      return std::make_unique<ProtectingBackend>(root, std::move(mappings));
    case DirtyTracking::soft_dirty:
      return std::make_unique<SoftDirtyBackend>(root, timeout, log);
    case DirtyTracking::none:
      break;
  }
  throw Refusal(
      "this kernel cannot tell which pages were written",
      "copy its memory while it stands still: `migrate dump` without a pre-dump, or `migrate send --mode stop-copy`");
}

}  // namespace migrate

// Dumping open files: descriptor tables, open file descriptions (each once, however many descriptors share it) and the
// files behind mappings, working folders and executables.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/held_lock.h"
#include "core/base/log.h"
#include "core/base/procfs.h"
#include "core/base/tree_options.h"
#include "core/files/advice.h"
#include "core/freeze/stopped_tree.h"
#include "core/image/image_set.h"

namespace migrate {

struct FileDumpOptions : TreeOptions {
  bool terminals = true;
  std::optional<int64_t> as_of_ns;  ///< CLOCK_MONOTONIC: what is left of timers is told as of this moment, not of now
  Advice advice = Advice::none;
};

/// A shared memory object reachable by descriptor (memfd): its pages are dumped as pagemap-shmem-<shmid>.
struct SharedObject {
  uint64_t shmid = 0;
  Fd fd;  ///< readable
};

class FileDumper {
 public:
  /// Throws Refusal for descriptors of running tasks that cannot be dumped (best effort; nothing is touched).
  static void preflight(const std::vector<ProcDir>& tasks, const FileDumpOptions& options, Logger& log);

  /// `tasks` must stay stopped while this lives.
  FileDumper(const std::vector<StoppedTask>& tasks, const FileDumpOptions& options, ImageSet& images, Logger& log);
  ~FileDumper();

  /// Describes all descriptors of all tasks. Refusal names task and fd.
  void dump_descriptors();
  /// The id N of the task's fdinfo-N.img; tasks that share a table share it.
  uint32_t files_id(Pid task) const;
  /// Registers the file behind a link of a task's /proc folder ("exe", "cwd", "root", "map_files/START-END") as a
  /// regular file and returns its id in files.img. `flags`: open flags to restore it with. Deleted files become ghosts.
  uint32_t add_path(const ProcDir& task, const std::string& link, uint32_t flags);
  /// Same for a memfd behind a mapping; returns the id of a MEMFD file entry.
  uint32_t add_memfd(const ProcDir& task, const std::string& link, uint32_t flags);
  /// Every memfd seen, each once. The id is its inode number on the kernel's internal tmpfs, as that of anonymous
  /// shared memory: unique over the tree, and known before the tree is stopped.
  std::vector<SharedObject> take_shared_objects();
  /// Locks on files, each once.
  const std::vector<HeldLock>& locks() const;
  /// Writes files.img, pipes-data, sk-queues, … into the ImageSet.
  void finish();
  /// The images are stored: names that were made for them (--link-remap) stay. Else they are removed at the end.
  void keep_links() noexcept;
  /// The tree was killed: its connections end without a word.
  void tree_is_dead() noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace migrate

// The address spaces of a stopped tree: mm-PID.img and the sources of their pages.
#pragma once

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/log.h"
#include "core/dump/task_memory.h"
#include "core/files/dump_files.h"
#include "core/freeze/stopped_tree.h"
#include "core/image/image_set.h"
#include "core/inject/harvest.h"
#include "core/memory/page_io.h"
#include "core/memory/vma.h"
#include "ext/ext.pb.h"
#include "images/mm.pb.h"

namespace migrate {

/// Whether a mapping can be dumped; throws Refusal naming task, range and what it is.
void check_mapping(pid_t pid, const Vma& vma);

class MemoryDumper {
 public:
  /// `files` is used until finish(). `tracked`: write protection by userfaultfd is ours (DirtyTracker), not the
  /// tree's.
  MemoryDumper(FileDumper& files, ImageSet& images, bool tracked, Logger& log);

  /// Describes the address space of one stopped task, which is `memory`, as mm-<image_pid>.img.
  /// What CRIU's format cannot hold goes into `extra`.
  void add_task(const StoppedTask& task, const TaskHarvest& harvest, TaskMemory memory, pid_t image_pid,
                ext::TaskExt& extra);
  /// Before tasks are added: the tree's System V segments, with their sizes, and those that nobody has attached.
  void add_segments(std::map<int, uint64_t> sizes, std::map<int, Fd> unattached);
  /// All memories; after the last task, and after the files have described all descriptors.
  std::vector<PageSource> finish();

 private:
  img::vma_entry describe(const StoppedTask& task, const Vma& vma, ext::TaskExt& extra);
  void describe_file(const StoppedTask& task, const Vma& vma, img::vma_entry& entry, ext::TaskExt& extra);

  void describe_segment(const StoppedTask& task, const Vma& vma, img::vma_entry& entry);
  [[noreturn]] static void refuse_same_number(const Vma& vma);
  void add_object(PageSource source);

  struct FileKey {
    dev_t device;
    uint64_t inode;
    std::string name;
    auto operator<=>(const FileKey&) const = default;
  };

  FileDumper& files_;
  ImageSet& images_;
  bool tracked_;
  Logger& log_;
  dev_t shm_device_;  ///< of the kernel's internal tmpfs: memfds and shared anonymous memory
  std::map<FileKey, uint32_t> file_ids_;
  std::map<uint64_t, uint64_t> anonymous_shmids_;  ///< inode → shmid
  std::map<uint64_t, uint64_t> known_segments_;    ///< sizes by shmid, which is their inode's number
  std::set<uint64_t> segments_;                    ///< those that have a source
  std::vector<PageSource> sources_;
};

}  // namespace migrate

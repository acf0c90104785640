// memfds: the description here, the pages with all other shared memory (pagemap-shmem-SHMID).
#pragma once

#include <map>
#include <set>
#include <vector>

#include "core/base/looked_at.h"
#include "core/files/open_file.h"
#include "core/files/restore_files.h"

namespace migrate {

class MemfdDumper {
 public:
  explicit MemfdDumper(DumpContext& context) : context_(context) {}
  void dump(const OpenFile& file);
  std::vector<SharedObject> take_objects() { return std::move(objects_); }

 private:
  uint32_t inode_id(const OpenFile& file);
  DumpContext& context_;
  dev_t device_ = internal_shm_device();
  std::map<InodeKey, uint32_t> inodes_;
  std::vector<SharedObject> objects_;
};

/// Live memfds by the id of their inode, made from memfd.img.
class MemfdRestorer {
 public:
  MemfdRestorer(const ImageSet& images, std::map<uint64_t, WarmMemfd> warm);
  /// A description of its own.
  Fd open(const img::memfd_file_entry& entry, int flags) const;
  const std::map<uint64_t, Fd>& objects() const { return by_shmid_; }
  bool is_warm(uint64_t shmid) const { return warm_.contains(shmid); }
  /// With the content in: cuts what whole pages brought behind the end, and seals against changes. `last` adds those
  /// that writable mappings, made before, survive but new ones do not.
  void seal(bool last) const;

 private:
  struct Inode {
    uint64_t shmid = 0;
    int seals = 0;
    off_t size = 0;
  };
  std::map<uint32_t, Inode> inodes_;
  std::map<uint64_t, Fd> by_shmid_;
  std::set<uint64_t> warm_;
};

}  // namespace migrate

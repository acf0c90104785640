// Locks on open files: POSIX (fcntl(2) F_SETLK), open file description (F_OFD_SETLK) and flock(2) ones.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/held_lock.h"
#include "core/files/open_file.h"
#include "images/file-lock.pb.h"

namespace migrate {

/// Locks that were taken through this descriptor: those of its description, and POSIX locks of the descriptor table.
/// Throws Corrupt.
std::vector<FileLock> parse_file_locks(const FdInfo& info);

/// Throws Refusal if the file has a lease, or locks while options.file_locks is off.
void check_file_locks(const OpenFile& file, const FileDumpOptions& options);

/// Writes filelocks.img: each lock once, with a descriptor through which it can be taken again.
class LockDumper {
 public:
  explicit LockDumper(DumpContext& context) : context_(context) {}
  /// `file_id`: of the description; `files_id`: of the table that `fd` of `task` stands in.
  void add(const ProcDir& task, int fd, uint32_t files_id, uint32_t file_id, const FdInfo& info);
  /// All of them, those of one number in a row of tasks.
  const std::vector<HeldLock>& held() const { return held_; }

 private:
  void hold(const ProcDir& task, int fd, uint32_t number, const FileLock& lock);

  DumpContext& context_;
  std::vector<HeldLock> held_;
  using Key = std::tuple<uint32_t, uint64_t, uint64_t, int64_t>;
  std::map<Key, uint32_t> seen_;  ///< and its number
};

}  // namespace migrate

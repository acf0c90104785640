// The files that a program will need here, looked at before it moves. The peer names them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/files/task_paths.h"
#include "migrate/session/guardian/identity_policy.h"
#include "migration.pb.h"

namespace migrate {

/// Where the sender may bring only some users (--allow-uid, without root), files are looked at as these, with no more
/// groups and capabilities than the program is to have and may: an answer tells nothing that such a program could not
/// find out here itself. Only the content of regular files is opened, and of none on file systems that do something
/// then. For one thread; acts as others while it lives.
class FileChecks {
 public:
  /// `root`: the folder that is / for the program; outlives this.
  FileChecks(const wire::Check& check, const IdentityPolicy& policy, int root);
  /// Whether it acts for others.
  bool bounded() const { return paths_.has_value(); }
  /// What is in the way of this file, with a remedy; else empty.
  std::string why_not(const wire::Check::File& file);
  /// Paths of files that were shown to be the same on both hosts, or are said to be.
  const std::vector<std::string>& shared() const { return shared_; }

 private:
  std::string look(const wire::Check::File& file);
  Fd find(const std::string& path, bool follow);
  Fd open_content(const Fd& found) const;
  bool probe_seen(const wire::Check::File& file, uint64_t inode);

  int root_;
  std::optional<TaskPaths> paths_;  ///< empty: all is done as ourselves
  std::optional<TaskPaths::Batch> batch_;
  Holders who_;
  std::vector<std::string> shared_;
};

}  // namespace migrate

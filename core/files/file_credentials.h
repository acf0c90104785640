// Whose right a file is opened by: the file credentials of a task, and taking them on for a while.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace img {
class creds_entry;
}

namespace migrate {

class ProcDir;

/// What the kernel looks at when a thread opens, makes or renames a file.
struct FileCredentials {
  uint32_t uid = 0, gid = 0;     ///< fsuid, fsgid
  std::vector<uint32_t> groups;  ///< supplementary; ascending, each once
  uint64_t capabilities = 0;     ///< effective
  std::string root = {};         ///< path of the root folder, if it has one of its own: nothing leads it out of that
  auto operator<=>(const FileCredentials&) const = default;

  bool has(int capability) const { return (capabilities >> capability & 1) != 0; }
  bool in_group(uint32_t group) const;
  /// Whether it could give a file of its own this owner and group (chown(2)).
  bool may_give(uint32_t owner, uint32_t group) const;
  /// Whether it could make a file of this owner and group with the set-id bits of `mode` (chown(2), chmod(2)).
  bool may_set_id(uint32_t mode, uint32_t owner, uint32_t group) const;
};

/// As FileCredentials::groups are: in order, each once.
void sort_once(std::vector<uint32_t>& groups);

/// Those who have a file open. Any of them may open it again for all.
using Holders = std::vector<FileCredentials>;
void add_holder(Holders& holders, const FileCredentials& who);
void least_rights_first(Holders& holders);

/// Throws Corrupt.
FileCredentials credentials_of(const img::creds_entry& creds);
/// Of a living task's first thread.
FileCredentials credentials_of(const ProcDir& task);
FileCredentials own_credentials();
/// Of the thread that /proc/PID/task/TID/status, or /proc/PID/status, tells of. Throws Corrupt.
FileCredentials credentials_in_status(std::string_view text);

/// The file credentials of the calling thread, and only those: its real, effective and saved ids, by which others may
/// signal or trace it, stay. One object a thread at a time.
class ActingAs {
 public:
  ActingAs();
  /// As be_self().
  ~ActingAs();
  ActingAs(const ActingAs&) = delete;
  ActingAs& operator=(const ActingAs&) = delete;

  /// Capabilities as far as we have them. Throws Error, as ourselves, if that cannot be.
  void become(const FileCredentials& who);
  /// Back. Ends the process if that fails: nothing may go on with the wrong rights.
  void be_self() noexcept;
  const FileCredentials& self() const { return own_; }
  const FileCredentials& now() const { return other_ ? *other_ : own_; }

 private:
  bool set(const FileCredentials& who, uint64_t capabilities) const;
  bool set_effective(uint64_t capabilities) const;
  void note_flags();
  void keep_death_signal() const;

  FileCredentials own_;
  uint64_t permitted_ = 0, inheritable_ = 0;
  int death_signal_ = 0, dumpable_ = 0;
  std::optional<FileCredentials> other_;
};

}  // namespace migrate

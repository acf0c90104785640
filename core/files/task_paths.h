// Paths opened by the right of those who hold the files: a move must not give a program what it could not open itself,
// through whatever link or folder somebody has put in the way; and a task that has a root folder of its own (chroot(2))
// nothing outside of that.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "core/base/fd.h"
#include "core/files/file_credentials.h"
#include "core/files/open_file.h"

namespace migrate {

/// `task`: with a holder's credentials. `root`: with ours, for what was opened before credentials were given up; then
/// every folder on the way must be one that root alone can change, so that what is found was put there by root.
enum class Right { task, root };

/// Somebody may not; the next right may. Its text is the reason.
class Denied : public Error {
 public:
  explicit Denied(const std::string& reason) : Error(reason) {}
};

class TaskPaths {
 public:
  /// `root`: where paths begin; must stay open. `by_root`: whether Right::root is ever tried.
  TaskPaths(int root, bool by_root);

  /// While one lives, rights that were taken on are kept from one attempt to the next.
  class Batch {
   public:
    explicit Batch(TaskPaths& paths) : paths_(paths) { ++paths_.batches_; }
    ~Batch() {
      if (--paths_.batches_ == 0) paths_.rest();
    }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

   private:
    TaskPaths& paths_;
  };

  /// Does `work` with the rights of each holder, until one may; then, if that is allowed, with root's. EACCES, EPERM
  /// and Denied try the next; other failures come back as they are. If none may: Refusal, naming `what`.
  void attempt(const Holders& holders, const std::string& what, const std::function<void(Right)>& work);
  /// With our own rights.
  void as_self(const std::function<void()>& work);

  // Within attempt(): with the rights that it has taken on.

  /// What the path leads to (O_PATH); a link at its end is not followed.
  Fd find(Right right, const std::string& path) { return open(right, path, O_PATH | O_NOFOLLOW); }
  /// The same by name with other flags; O_NOFOLLOW is added.
  Fd open(Right right, const std::string& path, int flags);
  /// Links at its end are followed, by the same rules as those on the way.
  Fd find_followed(Right right, const std::string& path);
  Fd find_folder(Right right, const std::string& path);
  /// Throws Denied for files of the kernel's that the task must not get by a move, though it may open them.
  void check_kind(Right right, int fd, const struct statx& st, uint32_t flags);
  /// faccessat2(2) of what `fd` is: R_OK, ...
  static bool may(int fd, int access);

  int root() const { return root_; }
  bool by_root() const { return by_root_; }
  const FileCredentials& now() const { return acting_.now(); }
  const FileCredentials& self() const { return acting_.self(); }

 private:
  struct Folder {
    Fd fd;
    bool shared = false;  ///< sticky: others may make files in it, but not remove root's
  };
  enum class Last { folder, followed };
  /// How many components of the path lie below a root folder that a holder has of its own.
  size_t confined_components(const std::string& path) const;
  void be_self();
  void rest();
  void become(const FileCredentials& who);
  Folder walk(Right right, const std::string& path, Last last);
  const Folder& folder(Right right, const std::string& path);
  void check_link(Right right, int folder, const struct statx& link, const std::string& path) const;
  Folder admit(Right right, Fd fd, bool in_shared);
  enum class FileSystem { ordinary, kernel, fuse };
  FileSystem file_system(int fd, const struct statx& st);

  int root_;
  bool by_root_;
  int batches_ = 0;
  ActingAs acting_;
  std::set<std::string> confined_;                        ///< root folders that holders have of their own
  const Holders* root_for_ = nullptr;                     ///< in this batch: those for whom root did the last
  std::map<std::string, Folder> folders_, root_folders_;  ///< walked before, with the present rights and by root
  std::map<std::pair<uint32_t, uint32_t>, FileSystem> file_systems_;  ///< by device
};

}  // namespace migrate

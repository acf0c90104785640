// Files that have a path.
#include <sys/sysmacros.h>

#include "core/base/looked_at.h"
#include "core/files/devices.h"
#include "core/files/kind.h"
#include "core/files/message_queue.h"
#include "core/files/regular.h"
#include "core/files/regular_restore.h"
#include "core/files/status_flags.h"

namespace migrate {
namespace {

class RegularDump : public DumpKind {
 public:
  explicit RegularDump(const DumpServices& services) : regular_(services.regular), options_(services.context.options) {}

  bool matches(const OpenFile& file) const override {
    if (!file.link.starts_with("/")) return false;
    const bool path_only = (file.info.flags & O_PATH) != 0;
    switch (file.type()) {
      case S_IFREG:
        // Memory objects of the kernel's own have no path, whatever they are called.
        return ::makedev(file.st.stx_dev_major, file.st.stx_dev_minor) != internal_ &&
               !file.link.starts_with("/anon_hugepage") &&
               !(file.link.starts_with("/memfd:") && file.st.stx_nlink == 0) && !is_message_queue(file);
      case S_IFDIR:
        return true;
      case S_IFIFO:
      case S_IFSOCK:
      case S_IFBLK:
      case S_IFLNK:
        return path_only;  // then it is only its path
      case S_IFCHR: {
        const uint32_t major = file.st.stx_rdev_major, minor = file.st.stx_rdev_minor;
        return stateless_device(major, minor) || (path_only && !terminal_device(major, minor)) ||
               (terminal_device(major, minor) && options_.shell_job && options_.terminals);
      }
      default:
        return false;
    }
  }

  void dump(const OpenFile& file) override {
    check_not_notified(file);
    regular_.dump(file);
  }

  bool preflight_opens(const OpenFile& file) const override {
    return file.type() == S_IFDIR && (file.info.flags & O_PATH) == 0;
  }
  void preflight(const OpenFile& file, Preflight&) override {
    check_not_notified(file);
    check_ghost(file, options_);
    check_name(file, options_);
  }

 private:
  /// fcntl(2) F_NOTIFY makes the caller the owner of a folder, for which nothing else does.
  static void check_not_notified(const OpenFile& file) {
    f_owner_ex owner{};
    if (file.type() != S_IFDIR || !file.ours || ::fcntl(file.ours.get(), F_GETOWN_EX, &owner) != 0 || owner.pid == 0)
      return;
    throw Refusal(file.who() + ", the folder " + file.link +
                      ", of which it has been notified by signals (F_NOTIFY): " + "of what, the kernel does not tell",
                  "have the program close it, or use inotify(7)");
  }

  RegularDumper& regular_;
  const FileDumpOptions& options_;
  const dev_t internal_ = internal_shm_device();
};

class RegularRestore : public RestoreKind {
 public:
  explicit RegularRestore(const RestoreServices& services) : regular_(services.regular) {}
  bool has_checks() const override { return regular_.has_ghosts(); }
  void check(const UsedFile& file) override { regular_.check_ghost(file.entry.reg(), file.holders); }
  bool by_path() const override { return true; }
  Fd open(const UsedFile& file) override {
    const img::reg_file_entry& e = file.entry.reg();
    Fd fd = regular_.open(e, e.flags(), file.holders);
    set_status_flags(fd.get(), e.flags(), e.name());
    if ((e.flags() & O_PATH) == 0) set_position(fd.get(), e.pos(), e.name());
    return fd;
  }
  void after_gate(std::vector<std::string>& failures) override { regular_.remove_links(failures); }

 private:
  RegularRestorer& regular_;
};

}  // namespace

extern const Kind kRegular{img::fd_types::REG, facts_of_part<&img::file_entry::has_reg, &img::file_entry::reg>,
                           make_dump<RegularDump>, make_restore<RegularRestore>};

}  // namespace migrate

#include "core/files/inotify.h"

#include <sys/inotify.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "core/files/kind.h"
#include "core/files/lasting_state.h"
#include "core/files/regular_restore.h"
#include "core/files/watched_paths.h"
#include "ext/files.pb.h"

namespace migrate {
namespace {

constexpr char kWatchesImage[] = "migrate-watches.img";
constexpr uint32_t kWatchesMagic = 0x4d494757;

/// INOTIFY_IOC_SETNEXTWD (Linux 4.15, CONFIG_CHECKPOINT_RESTORE)
constexpr unsigned long kSetNextWd = _IOW('I', 0, int32_t);

/// "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000..."
/// (proc(5)); the handle is not always there.
bool parse_watch(const std::string& line, InotifyWatch& out) {
  unsigned wd, device, mask;
  unsigned long long inode;
  if (std::sscanf(line.c_str(), "inotify wd:%x ino:%llx sdev:%x mask:%x", &wd, &inode, &device, &mask) != 4)
    return false;
  out.wd = wd;
  out.mask = mask;
  out.inode = inode;
  out.device = device;
  constexpr char kHandle[] = "f_handle:";
  const size_t bytes = line.find("fhandle-bytes:"), hex = line.find(kHandle);
  if (bytes == std::string::npos || hex == std::string::npos) return true;
  unsigned length = 0, type = 0;
  if (std::sscanf(line.c_str() + bytes, "fhandle-bytes:%x fhandle-type:%x", &length, &type) != 2) return false;
  const std::string digits = line.substr(hex + std::strlen(kHandle));
  if (length > MAX_HANDLE_SZ || digits.size() < size_t{2} * length) return false;
  out.handle_type = static_cast<int>(type);
  for (unsigned i = 0; i < length; ++i)
    out.handle.push_back(static_cast<std::byte>(std::strtoul(digits.substr(size_t{2} * i, 2).c_str(), nullptr, 16)));
  return true;
}

}  // namespace

std::vector<InotifyWatch> inotify_watches(std::string_view fdinfo) {
  std::vector<InotifyWatch> watches;
  while (!fdinfo.empty()) {
    const size_t end = std::min(fdinfo.find('\n'), fdinfo.size());
    const std::string line(fdinfo.substr(0, end));
    fdinfo.remove_prefix(std::min(end + 1, fdinfo.size()));
    if (!line.starts_with("inotify ")) continue;
    if (!parse_watch(line, watches.emplace_back()))
      throw Corrupt("fdinfo of an inotify instance", "'" + line + "' is not understood");
  }
  std::ranges::sort(watches, {}, &InotifyWatch::wd);
  return watches;
}

int queued_events(int inotify, const std::string& who) {
  int bytes = 0;
  check(::ioctl(inotify, FIONREAD, &bytes), "ask for the events of", who);
  return bytes;
}

Refusal events_not_read(const std::string& who) {
  return {who + ", an inotify instance with events that the program has not read",
          "try again when it has read them; they cannot be copied"};
}

namespace {

class InotifyDump : public DumpKind {
 public:
  explicit InotifyDump(const DumpServices& services)
      : context_(services.context), regular_(services.regular), paths_(services.regular) {}
  bool matches(const OpenFile& file) const override { return file.link == "anon_inode:inotify"; }

  void dump(const OpenFile& file) override {
    if (queued_events(file.ours.get(), file.who()) != 0) throw events_not_read(file.who());
    img::file_entry entry = entry_of(img::fd_types::INOTIFY, file.id);
    describe_common(file, *entry.mutable_ify());
    for (const InotifyWatch& watch : inotify_watches(file.info.text)) {
      OpenFile watched = paths_.find(file, watch);
      watched.id = context_.new_id();
      regular_.dump_watched(watched);
      describe(watch, watched, file.id, *entry.mutable_ify()->add_wd());
    }
    context_.emit(entry);
  }

  void preflight(const OpenFile& file, Preflight& preflight) override {
    for (const InotifyWatch& watch : inotify_watches(file.info.text)) {
      const OpenFile watched = paths_.find(file, watch);
      check_ghost(watched, context_.options);
      check_name(watched, context_.options);
    }
    preflight.lasting.see_events(file);
  }

 private:
  void describe(const InotifyWatch& watch, const OpenFile& watched, uint32_t id, img::inotify_wd_entry& out) {
    out.set_id(id);
    out.set_i_ino(watch.inode);
    out.set_mask(watch.mask);
    out.set_ignored_mask(0);
    out.set_s_dev(watch.device);
    out.set_wd(watch.wd);
    img::fh_entry& handle = *out.mutable_f_handle();
    handle.set_bytes(static_cast<uint32_t>(watch.handle.size()));
    handle.set_type(static_cast<uint32_t>(watch.handle_type));
    for (size_t i = 0; i < watch.handle.size(); ++i) {
      if (i % 8 == 0) handle.add_handle(0);
      const auto byte = static_cast<uint64_t>(watch.handle[i]);
      handle.set_handle(handle.handle_size() - 1, handle.handle(handle.handle_size() - 1) | byte << (i % 8 * 8));
    }
    handle.set_path(watched.link);
    ext::Watch which;
    which.set_inotify(id);
    which.set_wd(watch.wd);
    which.set_file(watched.id);
    context_.images.write(kWatchesImage, kWatchesMagic).entry(which);
  }

  DumpContext& context_;
  RegularDumper& regular_;
  WatchedPaths paths_;
};

class InotifyRestore : public RestoreKind {
 public:
  explicit InotifyRestore(const RestoreServices& services) : services_(services) {
    auto reader = services.images.read(kWatchesImage, kWatchesMagic);
    ext::Watch watch;
    while (reader && reader->next(watch)) files_[{watch.inotify(), watch.wd()}] = watch.file();
  }

  bool has_checks() const override { return services_.regular.has_ghosts(); }
  void check(const UsedFile& file) override {
    for (const img::inotify_wd_entry& watch : file.entry.ify().wd())
      services_.regular.check_ghost(watched(watch, file.id), file.holders);
  }
  Fd open(const UsedFile&) override {
    return Fd(migrate::check(::inotify_init1(IN_CLOEXEC), "make", "an inotify instance"));
  }
  void opened(const UsedFile& file, int fd) override { instances_.push_back({file, fd}); }

  /// When all files are open, of which the program must hear nothing.
  void seal(const std::map<uint32_t, int>&) override {
    for (const Instance& instance : instances_) {
      std::map<uint32_t, const img::inotify_wd_entry*> watches;
      for (const img::inotify_wd_entry& watch : instance.file.entry.ify().wd()) watches[watch.wd()] = &watch;
      for (const auto& [wd, watch] : watches) add(instance, *watch);
    }
  }

 private:
  struct Instance {
    UsedFile file;
    int fd;
  };

  const img::reg_file_entry& watched(const img::inotify_wd_entry& watch, uint32_t inotify) const {
    const auto file = files_.find({inotify, watch.wd()});
    if (file == files_.end())
      throw Refusal("the images hold a watch of an inotify instance without the file that is watched",
                    "dump the program with this program");
    const auto entry = services_.entries.find(file->second);
    if (entry == services_.entries.end() || entry->second.type() != img::fd_types::REG)
      throw Corrupt(kWatchesImage, "a watched file is not in files.img");
    return entry->second.reg();
  }

  /// By the right of a task that has it: inotify_add_watch(2) asks whether that may read the file.
  void add(const Instance& instance, const img::inotify_wd_entry& watch) {
    const img::reg_file_entry& file = watched(watch, instance.file.id);
    services_.regular.with_found(
        file, instance.file.holders, [&](int found) { add_as(instance.fd, fd_link(found), watch, file.name()); }, true);
  }

  static void add_as(int inotify, const std::string& path, const img::inotify_wd_entry& watch,
                     const std::string& name) {
    constexpr uint32_t kMask = IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT;
    const auto wanted = static_cast<int>(watch.wd());
    if (wanted <= 0) throw Corrupt("files.img", "a watch has an impossible number");
    const auto next = [&] {
      return migrate::check(::inotify_add_watch(inotify, path.c_str(), watch.mask() & kMask), "watch", name);
    };
    int wd = -1;
    if (::ioctl(inotify, kSetNextWd, wanted) == 0) {
      wd = next();
    } else {
      // Numbers ascend, and none comes twice.
      constexpr int kTries = 1 << 16;
      for (int n = 0; n < kTries && (wd = next()) < wanted; ++n) ::inotify_rm_watch(inotify, wd);
      drain(inotify);
    }
    if (wd != wanted) throw Error(name + " cannot be watched under number " + std::to_string(wanted));
  }

  /// Of the watches that were removed (IN_IGNORED).
  static void drain(int inotify) {
    std::array<std::byte, 4096> events;
    while (queued_events(inotify, "an inotify instance") > 0)
      if (::read(inotify, events.data(), events.size()) <= 0) return;
  }

  const RestoreServices services_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> files_;  ///< by inotify and wd
  std::vector<Instance> instances_;
};

}  // namespace

extern const Kind kInotify{img::fd_types::INOTIFY, facts_of_part<&img::file_entry::has_ify, &img::file_entry::ify>,
                           make_dump<InotifyDump>, make_restore<InotifyRestore>};

}  // namespace migrate

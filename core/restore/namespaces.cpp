#include "core/restore/namespaces.h"
#include "core/base/procfs.h"

#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <sstream>

#include "core/base/deadline.h"
#include "core/base/proc_values.h"
#include "core/files/terminal_state.h"
#include "core/image/magic.h"
#include "core/restore/messages.h"
#include "core/restore/tree_init.h"
#include "images/timens.pb.h"

namespace migrate {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;

std::optional<img::timens_entry> read_timens(const ImageSet& images) {
  for (const auto& [name, bytes] : images.images()) {
    if (!name.starts_with("timens-")) continue;
    img::timens_entry e;
    images.need(name, magic::kTimens, e);
    return e;
  }
  return std::nullopt;
}

int64_t to_ns(const img::timespec& t) {
  constexpr uint64_t kMaxSeconds = uint64_t{1} << 32;
  if (t.tv_sec() > kMaxSeconds || t.tv_nsec() >= kNsPerSecond)
    throw Corrupt("the timens image", "a clock is out of range");
  return static_cast<int64_t>(t.tv_sec()) * kNsPerSecond + static_cast<int64_t>(t.tv_nsec());
}

std::string offset_line(const std::string& clock, int64_t ns) {
  int64_t seconds = ns / kNsPerSecond, rest = ns % kNsPerSecond;
  if (rest < 0) {
    rest += kNsPerSecond;
    --seconds;
  }
  return clock + " " + std::to_string(seconds) + " " + std::to_string(rest) + "\n";
}

void set_clocks(const NamespaceClocks& wanted) {
  // New offsets are relative to the initial namespace.
  const ClockOffsetsText own = parse_clock_offsets(read_file_at(AT_FDCWD, "/proc/self/timens_offsets"));
  const int64_t monotonic = wanted.monotonic_ns - clock_ns(CLOCK_MONOTONIC) + own.monotonic_ns;
  const int64_t boottime = wanted.boottime_ns - clock_ns(CLOCK_BOOTTIME) + own.boottime_ns;
  const std::string text = offset_line("monotonic", monotonic) + offset_line("boottime", boottime);
  const Fd file = open_path("/proc/self/timens_offsets", O_WRONLY);
  write_full(file.get(), as_bytes_of(text), "/proc/self/timens_offsets");
}

}  // namespace

namespace {

std::optional<ProcStat> stat_of(pid_t pid) {
  try {
    return ProcDir(pid).stat();
  } catch (const Error&) {
    return std::nullopt;
  }
}

/// What of ours holds it: by ptrace(2), as a dump does, or in a frozen cgroup, as a dump that gives its pages away.
/// Empty: nothing.
std::string holder_of(pid_t pid) {
  try {
    const ProcDir proc(pid);
    std::string cgroups = proc.read("cgroup") + "\n";
    for (size_t end; (end = cgroups.find('\n')) != std::string::npos; cgroups.erase(0, end + 1)) {
      const std::string path = cgroups.substr(0, end);
      const std::string name = path.substr(path.rfind('/') + 1);
      constexpr size_t kSession = std::string_view("migrate-").size() + 32;
      if (name.starts_with("migrate-dump-") || (name.starts_with("migrate-") && name.size() == kSession))
        return "a migration holds in the cgroup " + name;
    }
    const auto tracer = parse_number<pid_t>(proc.status().at("TracerPid"), "TracerPid");
    if (tracer != 0 && ProcDir(tracer).stat().comm.starts_with("migrate"))
      return "process " + std::to_string(tracer) + " has stopped";
  } catch (const std::exception&) {  // it ends
  }
  return {};
}

[[noreturn]] void refuse_taken(pid_t pid, const std::optional<ProcStat>& taker) {
  const std::string what = "pid " + std::to_string(pid) + " is taken on this host";
  if (!taker) throw Refusal(what + " as the number of a thread, group or session", "end who has it");
  if (taker->state == 'Z')
    throw Refusal(what + " by " + taker->comm + ", which has ended",
                  "its parent " + std::to_string(taker->ppid) + " has to collect it first");
  if (const std::string holder = holder_of(pid); !holder.empty())
    throw Refusal(
        what + " by " + taker->comm + ", which " + holder + " and which may have pages that exist nowhere else",
        "restore where that number is free: on another host, or in a pid namespace of its own");
  throw Refusal(what + " by " + taker->comm, "end that process");
}

constexpr std::chrono::milliseconds kForOthers{500};

}  // namespace

pid_t fork_with_pid(pid_t pid, uint64_t parent_flag, int exit_signal) {
  clone_args args{};
  args.flags = parent_flag;
  args.exit_signal = parent_flag == 0 ? static_cast<uint64_t>(exit_signal) : 0;
  if (pid != 0) {
    args.set_tid = reinterpret_cast<uint64_t>(&pid);
    args.set_tid_size = 1;
  }
  // A tree that was killed a moment ago keeps its ids until all its zombies are reaped, groups and sessions included:
  // its root's pid may become free before the number of its group does.
  const Deadline for_zombies = Deadline::in(std::chrono::seconds(3));
  Deadline deadline = Deadline::in(kForOthers);
  for (;;) {
    const long child = ::syscall(SYS_clone3, &args, sizeof args);
    if (child >= 0) return static_cast<pid_t>(child);
    if (errno != EEXIST) throw Error("fork the shell of", "task " + std::to_string(pid), errno);
    const std::optional<ProcStat> taker = stat_of(pid);
    if (taker && taker->state == 'Z') deadline = Deadline::in(kForOthers);
    if (deadline.passed() || for_zombies.passed()) refuse_taken(pid, taker);
    ::usleep(2000);
  }
}

std::optional<NamespaceClocks> wanted_clocks(const ImageSet& images, const RestoreOptions& options) {
  if (options.clocks) {
    const int64_t since = clock_ns(CLOCK_MONOTONIC) - options.clocks->at_local_monotonic_ns;
    return NamespaceClocks{options.clocks->monotonic_ns + since, options.clocks->boottime_ns + since};
  }
  const auto e = read_timens(images);
  if (!e) return std::nullopt;
  return NamespaceClocks{to_ns(e->monotonic()), to_ns(e->boottime())};
}

std::optional<int64_t> dumped_monotonic_ns(const ImageSet& images) {
  const auto e = read_timens(images);
  if (!e) return std::nullopt;
  return to_ns(e->monotonic());
}

uint64_t elapsed_since_dump_ns(const ImageSet& images) {
  const auto e = read_timens(images);
  return e ? static_cast<uint64_t>(std::max<int64_t>(0, clock_ns(CLOCK_MONOTONIC) - to_ns(e->monotonic()))) : 0;
}

namespace {

/// For who is in the tree's pid namespace and not of the tree: the highest, which a program meets last.
pid_t number_beside(const std::vector<pid_t>& tasks) {
  constexpr const char* kMost = "/proc/sys/kernel/pid_max";
  auto number = parse_number<pid_t>(read_file_at(AT_FDCWD, kMost), kMost) - 1;
  while (std::ranges::find(tasks, number) != tasks.end()) --number;
  return number;
}

}  // namespace

Fd enter_namespaces(const ImageSet& images, const RestoreOptions& options, const std::vector<pid_t>& tasks,
                    const Fd& launcher) {
  int flags = CLONE_NEWTIME;
  if (options.own_namespaces) flags |= CLONE_NEWPID | CLONE_NEWNS;
  const pid_t number = options.own_namespaces ? number_beside(tasks) : 0;
  check(::unshare(flags), "make", "the namespaces of the tree");
  if (const auto wanted = wanted_clocks(images, options)) set_clocks(*wanted);
  // The child is in the new pid and time namespaces; as our sibling it outlives us in its parent's care.
  if (fork_with_pid(0, CLONE_PARENT) != 0) ::_exit(0);
  if (!options.own_namespaces) return {};
  // The init's child, so that the namespace's end waits for nobody outside of it.
  SocketPair pair = SocketPair::make();
  if (fork_with_pid(number) != 0) {
    pair.first.reset();
    run_tree_init(std::move(pair.second), launcher.dup());
  }
  pair.second.reset();
  return std::move(pair.first);
}

namespace {

struct statx look_at(int fd) {
  struct statx st {};
  check(::statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_MNT_ID, &st), "look at", "a root folder");
  return st;
}

/// Makes `top` the root of our mount namespace, with all that is mounted below it and nothing else. We are at the
/// namespace's present root.
void make_root_of_namespace(const Fd& top, const std::string& name) {
  const Fd tree(static_cast<int>(
      check(::syscall(SYS_open_tree, top.get(), "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH),
            "clone the mounts of", name)));
  check(::syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH), "mount", name);
  check(::fchdir(tree.get()), "change to", name);
  check(::syscall(SYS_pivot_root, ".", "."), "make the root folder", name);
  // The old root is stacked on the new one.
  check(::umount2(".", MNT_DETACH), "unmount", "the old root");
  check(::chdir("/"), "change to", "/");
}

/// What container runtimes keep from programs, since it is of the machine and not of the program: the kernel's memory,
/// keys, timers and commands. /proc has them in every namespace.
constexpr std::array kMaskedFiles{"/proc/kcore",      "/proc/keys",        "/proc/key-users",    "/proc/latency_stats",
                                  "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",  "/proc/kpagecount",
                                  "/proc/kpageflags", "/proc/kpagecgroup", "/proc/sysrq-trigger"};
constexpr std::array kMaskedFolders{"/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware",
                                    "/sys/devices/virtual/powercap"};
constexpr const char* kTerminals = "/dev/pts";
constexpr std::array kReadOnly{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"};

bool exists(const char* path) { return ::faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0; }

/// A mount of one file, at no place yet.
Fd clone_mount(const char* path) {
  return Fd(static_cast<int>(check(::syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC),
                                   "clone the mount of", path)));
}

/// `null`: a mount of a device without content, from outside of the new root, where there need not be one.
void mask_proc(Fd null) {
  for (const char* path : kMaskedFiles) {
    if (!exists(path)) continue;
    check(::syscall(SYS_move_mount, null.get(), "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH), "mask", path);
    null = clone_mount(path);
  }
  constexpr unsigned long kHarmless = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
  for (const char* path : kMaskedFolders)
    if (exists(path)) check(::mount("none", path, "tmpfs", kHarmless, "size=0k,mode=755"), "mask", path);
  for (const char* path : kReadOnly) {
    if (!exists(path)) continue;
    check(::mount(path, path, nullptr, MS_BIND | MS_REC, nullptr), "mount", path);
    check(::mount(nullptr, path, nullptr, MS_BIND | MS_REMOUNT | kHarmless, nullptr), "make read-only", path);
  }
}

/// "mode=620,gid=5" of the devpts that is there: new terminals are to belong to the same group.
std::string terminal_options() {
  std::string options;
  std::istringstream lines(read_file_at(AT_FDCWD, "/proc/self/mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word, point;
    for (int i = 0; i < 5; ++i) words >> point;
    if (point != kTerminals) continue;
    options.clear();
    while (words >> word && word != "-") {
    }
    words >> word >> word >> word;  // type, source, the file system's own options
    std::istringstream each(word);
    for (std::string option; std::getline(each, option, ',');)
      if (option.starts_with("gid=") || option.starts_with("mode=")) options += "," + option;
  }
  return options.empty() ? ",gid=5,mode=620" : options;
}

/// Whether a terminal that /dev/ptmx makes is one of those at /dev/pts.
bool makes_own_terminals(const char* ptmx) {
  const Fd master(::open(ptmx, O_RDWR | O_NOCTTY | O_CLOEXEC));
  int number = 0;
  if (!master || ::ioctl(master.get(), TIOCGPTN, &number) != 0) return false;  // it makes none at all
  lock_slave(master.get(), false, ptmx);
  struct stat slave {
  }, folder{};
  const Fd opened = open_slave(master.get(), O_RDWR, ptmx);
  check(::fstat(opened.get(), &slave), "stat", "a terminal");
  check(::stat(kTerminals, &folder), "stat", kTerminals);
  return slave.st_dev == folder.st_dev;
}

/// Terminals of the tree's own: it keeps its numbers, and gets none of this host.
void mount_terminals() {
  struct stat st {};
  if (::stat(kTerminals, &st) != 0 || !S_ISDIR(st.st_mode)) return;
  const std::string options = "newinstance,ptmxmode=0666" + terminal_options();
  if (::mount("devpts", kTerminals, "devpts", MS_NOSUID | MS_NOEXEC, options.c_str()) != 0) {
    if (errno == ENODEV) return;  // a kernel without Unix98 terminals
    throw Error("mount", kTerminals, errno);
  }
  constexpr const char* kMaker = "/dev/ptmx";
  if (::stat(kMaker, &st) != 0 || makes_own_terminals(kMaker)) return;
  check(::mount("/dev/pts/ptmx", kMaker, nullptr, MS_BIND, nullptr), "mount", kMaker);
}

}  // namespace

void set_up_mounts(const std::string& root) {
  check(::mount("none", "/", nullptr, MS_REC | MS_SLAVE, nullptr), "make slaves of", "all mounts");
  const std::string name = root.empty() ? "/" : root;
  const Fd top = open_path(name, O_PATH | O_DIRECTORY);
  Fd null = root.empty() ? Fd() : clone_mount("/dev/null");
  // Joining a mount namespace, also one's own, leads to its root, out of a chroot(2).
  const Fd self = open_path("/proc/self/ns/mnt", O_RDONLY);
  check(::setns(self.get(), CLONE_NEWNS), "go to the root of", "the mount namespace");
  const struct statx wanted = look_at(top.get()), real = look_at(open_path("/", O_PATH | O_DIRECTORY).get());
  // The tree sees its root as we do; a root within a larger one would show in /proc, and be no good boundary.
  if (wanted.stx_mnt_id != real.stx_mnt_id || wanted.stx_ino != real.stx_ino) make_root_of_namespace(top, name);
  check(::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr), "mount", "/proc");
  if (null) mask_proc(std::move(null));
  mount_terminals();
}

}  // namespace migrate

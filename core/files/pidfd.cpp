// pidfds: of tasks of the tree, and of processes that have ended and were waited for.
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "core/base/procfs.h"
#include "core/files/kind.h"
#include "core/image/magic.h"
#include "ext/files.pb.h"
#include "images/pstree.pb.h"

namespace migrate {
namespace {

constexpr char kEndedImage[] = "migrate-ended.img";
constexpr uint32_t kEndedMagic = 0x4d494744;

constexpr uint32_t kOfThread = O_EXCL;  ///< PIDFD_THREAD (Linux 6.9), which stays in the flags

/// PIDFD_GET_INFO (Linux 6.13; the exit code 6.15): linux/pidfd.h of older headers lacks it.
struct PidfdInfo {
  uint64_t mask;
  uint64_t cgroupid;
  uint32_t pid, tgid, ppid;
  uint32_t ids[8];
  int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);
constexpr uint64_t kInfoExit = 1 << 3;

std::optional<int> exit_code_of(int pidfd) {
  PidfdInfo info{};
  info.mask = kInfoExit;
  if (::ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kInfoExit) == 0) return std::nullopt;
  return info.exit_code;
}

class PidfdDump : public DumpKind {
 public:
  explicit PidfdDump(const DumpServices& services) : context_(services.context) {}
  bool matches(const OpenFile& file) const override {
    return file.link == "anon_inode:[pidfd]" || file.link.starts_with("pidfd:");
  }

  void dump(const OpenFile& file) override {
    img::file_entry entry = entry_of(img::fd_types::PIDFD, file.id);
    img::pidfd_entry& pidfd = *entry.mutable_pidfd();
    describe_common(file, pidfd);
    // Two of one process have one inode.
    pidfd.set_ino(static_cast<uint32_t>(file.info.ino));
    pidfd.set_nspid(number_of(file));
    context_.emit(entry);
    if (pidfd.nspid() != -1) return;
    ext::EndedProcess ended;
    ended.set_id(file.id);
    if (const auto code = exit_code_of(file.ours.get())) ended.set_exit_code(*code);
    context_.images.write(kEndedImage, kEndedMagic).entry(ended);
  }

 private:
  /// As the tree's pid namespace numbers it; -1: it has ended.
  pid_t number_of(const OpenFile& file) const {
    const std::string text(fdinfo_field(file.info, "Pid:").value_or(""));
    const pid_t pid = std::atoi(text.c_str());
    if (pid == -1) return -1;
    if (pid == 0) throw Refusal(file.who() + ", a pidfd of a process that is not in the tree", "close it first");
    // When files are opened again there are no threads yet, but for the first of each task.
    if ((file.info.flags & kOfThread) != 0 && ProcDir(pid).status()["Tgid"] != text)
      throw Refusal(file.who() + ", a pidfd of thread " + text + ", which is not the first of its task",
                    "close it first");
    if (!context_.in_tree(pid))
      throw Refusal(file.who() + ", a pidfd of process " + text + ", which is not in the tree", "close it first");
    return context_.pid_in_tree(pid);
  }

  DumpContext& context_;
};

/// Not by a signal that only stops.
bool is_an_end(int status) {
  if (WIFEXITED(status)) return true;
  const int signal = WTERMSIG(status);
  return WIFSIGNALED(status) && signal < NSIG && signal != SIGSTOP && signal != SIGTSTP && signal != SIGTTIN &&
         signal != SIGTTOU;
}

/// pidfds of a process that has ended as that one did: later there are none to be had, and one that is opened through
/// /proc/self/fd has other flags.
std::vector<Fd> ended_process(std::optional<int> exit_code, size_t wanted) {
  const int code = exit_code.value_or(0);
  if (!is_an_end(code)) throw Corrupt(kEndedImage, "a process has an impossible exit code");
  const pid_t pid = check(::fork(), "start", "a process that ends");
  if (pid == 0) {
    const int signal = WIFSIGNALED(code) ? WTERMSIG(code) : 0;
    // Nobody wants our memory, and nobody waits for a core of it.
    ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (signal != 0) {
      ::signal(signal, SIG_DFL);
      ::kill(::getpid(), signal);
    }
    ::_exit(WEXITSTATUS(code));
  }
  // It waits to be waited for.
  std::vector<Fd> pidfds;
  for (size_t i = 0; i < wanted; ++i)
    if (std::optional<Fd> pidfd = open_pidfd(pid)) pidfds.push_back(std::move(*pidfd));
  int status = 0;
  check(::waitpid(pid, &status, 0), "wait for", "a process that ends");
  if (pidfds.size() != wanted) throw Error("open", "the pidfd of a process that ended", ESRCH);
  return pidfds;
}

class PidfdRestore : public RestoreKind {
 public:
  explicit PidfdRestore(const RestoreServices& services) {
    auto tree = services.images.read("pstree.img", magic::kPstree);
    img::pstree_entry task;
    while (tree && tree->next(task)) tasks_.insert(static_cast<pid_t>(task.pid()));
    auto ended = services.images.read(kEndedImage, kEndedMagic);
    ext::EndedProcess e;
    while (ended && ended->next(e))
      if (e.has_exit_code()) exit_codes_[e.id()] = e.exit_code();
    for (const auto& [id, entry] : services.entries)
      if (entry.type() == img::fd_types::PIDFD && entry.pidfd().nspid() == -1) ++of_ended_[entry.pidfd().ino()];
  }

  Fd open(const UsedFile& file) override {
    const img::pidfd_entry& e = file.entry.pidfd();
    if (e.nspid() == -1) return ended(e);
    // Of others the program could not have had one by this move.
    if (!tasks_.contains(e.nspid())) throw Corrupt("files.img", "a pidfd is of a process that is not in the tree");
    return Fd(static_cast<int>(migrate::check(::syscall(SYS_pidfd_open, e.nspid(), e.flags() & kOfThread),
                                              "open the pidfd of task", std::to_string(e.nspid()))));
  }

 private:
  Fd ended(const img::pidfd_entry& e) {
    std::vector<Fd>& left = ended_[e.ino()];
    if (left.empty()) {
      const auto code = exit_codes_.find(e.id());
      left = ended_process(code == exit_codes_.end() ? std::nullopt : std::optional(code->second), of_ended_[e.ino()]);
    }
    Fd one = std::move(left.back());
    left.pop_back();
    return one;
  }

  std::set<pid_t> tasks_;
  std::map<uint32_t, int> exit_codes_;         ///< by file id
  std::map<uint32_t, size_t> of_ended_;        ///< how many, by inode
  std::map<uint32_t, std::vector<Fd>> ended_;  ///< those not given yet, by inode
};

}  // namespace

extern const Kind kPidfd{img::fd_types::PIDFD, facts_of_part<&img::file_entry::has_pidfd, &img::file_entry::pidfd>,
                         make_dump<PidfdDump>, make_restore<PidfdRestore>};

}  // namespace migrate

// What a restored program is and has: its own credentials before anything of its own, nothing of the restoring process.
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/files/image_tables.h"
#include "core/image/magic.h"
#include "core/restore/namespaces.h"
#include "core/restore/plans.h"
#include "core/restore/restorable.h"
#include "core/restore/restore.h"
#include "core/restore/shell.h"
#include "tests/core/changed_images.h"

namespace migrate {
namespace {

/// Of this test program alone: queued signals are counted by user, and tests run side by side.
const uid_t kTestUser = 1'000'000 + static_cast<uid_t>(::getpid());

template <class Condition>
bool soon(Condition&& condition) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(20));
  while (!condition()) {
    if (deadline.passed()) return false;
    ::usleep(500);
  }
  return true;
}

class RestoredUser : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    ::chmod(folder_.c_str(), 0777);
  }
  void TearDown() override {
    end();
    if (std::filesystem::exists(folder_)) std::filesystem::remove_all(folder_);
  }

  /// A program of its own session that calls `prepare`, says that it is there, and waits for a word to `report`.
  void start(
      const std::function<void()>& prepare, const std::function<std::string()>& report = [] { return ""; }) {
    pid_ = ::fork();
    ASSERT_GE(pid_, 0);
    if (pid_ != 0) {
      ASSERT_TRUE(soon([&] { return ::access(at("ready").c_str(), F_OK) == 0; }));
      return;
    }
    ::setsid();
    const int null = ::open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
    ::close_range(3, ~0u, 0);
    ::prctl(PR_SET_KEEPCAPS, 0);
    prepare();
    ::close(::open(at("ready").c_str(), O_CREAT | O_WRONLY, 0666));
    while (::access(at("ask").c_str(), F_OK) != 0) ::usleep(1000);
    {
      std::ofstream(at("telling")) << report();
      ::rename(at("telling").c_str(), at("told").c_str());
    }
    for (;;) ::pause();
  }

  /// Dumps what was started, which is dead afterwards.
  void dump(const std::function<void(ImageSet&)>& change = [](ImageSet&) {}) {
    const Fd dir = open_path(folder_, O_RDONLY | O_DIRECTORY);
    {
      Dump dump({.root = Pid(pid_)}, *log_);
      write_page_images(dump, dir.get());
      change(dump.images());
      check_restorable(dump.images(), dump.memories(), false);
      dump.images().save(dir.get());
      dump.tree().kill();
    }
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

  void restore() {
    const Fd dir = open_path(folder_, O_RDONLY | O_DIRECTORY);
    const ImageSet images = ImageSet::load(dir.get());
    Restore restore(RestoreOptions{}, *log_);
    restore.prepare(images, nullptr);
    restore.fill_from(dir.get());
    restore.finish(images);
    restore.open_gate();
    pid_ = restore.root().get();
  }

  std::string ask() {
    ::close(::open(at("ask").c_str(), O_CREAT | O_WRONLY, 0666));
    EXPECT_TRUE(soon([&] { return ::access(at("told").c_str(), F_OK) == 0; }));
    return read_file_at(AT_FDCWD, at("told"));
  }

  void end() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

  /// Runs `body`, which may change what it likes, in a process of its own; fails with what it throws.
  void in_other_surroundings(const std::function<void()>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      bool good = true;
      try {
        body();
      } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        good = false;
      }
      end();
      ::_exit(good && !HasFailure() ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }

  std::string at(const std::string& name) const { return folder_ + "/" + name; }
  std::string core_name() const { return "core-" + std::to_string(pid_) + ".img"; }

  std::string folder_ = "/tmp/migrate-creds-XXXXXX";
  pid_t pid_ = 0;
  LoggerPtr log_ = null_logger();
};

void become_user() {
  if (::setgroups(0, nullptr) != 0 || ::setresgid(kTestUser, kTestUser, kTestUser) != 0 ||
      ::setresuid(kTestUser, kTestUser, kTestUser) != 0)
    ::_exit(3);
  ::prctl(PR_SET_DUMPABLE, 1);
}

TEST_F(RestoredUser, AThreadThatDoesNotSayWhoseItIsIsNotRestored) {
  start(become_user);
  ImageSet good;
  const pid_t pid = pid_;
  dump([&](ImageSet& images) {
    for (const auto& [name, bytes] : images.images()) good.adopt(name, bytes);
  });
  const TaskNode node = read_tree(good).front();
  EXPECT_NO_THROW(read_task(good, node));
  const std::vector<std::function<void(img::core_entry&)>> hostile{
      [](auto& core) { core.mutable_thread_core()->clear_creds(); },
      [](auto& core) { core.mutable_thread_core()->mutable_creds()->set_uid(UINT32_MAX); },
      [](auto& core) { core.mutable_thread_core()->mutable_creds()->set_suid(UINT32_MAX); },
      [](auto& core) { core.mutable_thread_core()->mutable_creds()->set_egid(UINT32_MAX); },
      [](auto& core) { core.mutable_thread_core()->mutable_creds()->add_groups(UINT32_MAX); },
      [](auto& core) { core.mutable_tc()->clear_rlimits(); },
  };
  for (const auto& how : hostile) {
    ImageSet bad;
    for (const auto& [name, bytes] : good.images()) bad.adopt(name, bytes);
    change<img::core_entry>(bad, "core-" + std::to_string(pid) + ".img", magic::kCore, how);
    EXPECT_THROW(read_task(bad, node), Corrupt);
  }
}

/// The tags of a list, in their order.
std::vector<restorer::Tag> tags(const restorer::Record* records, uint64_t count) {
  std::vector<restorer::Tag> all;
  for (uint64_t i = 0; i < count; ++i) all.push_back(records[i].tag);
  return all;
}

/// No step that gives anything to the task's own memory or code comes before the last of its credentials.
void expect_order(const std::vector<restorer::Tag>& list) {
  using restorer::Tag;
  const auto last =
      std::find_if(list.rbegin(), list.rend(), [](Tag t) { return t == Tag::credentials || t == Tag::capabilities; });
  ASSERT_NE(last, list.rend());
  for (const Tag t : {Tag::robust_list, Tag::altstack, Tag::rseq, Tag::tid_address, Tag::pending_signal, Tag::timer,
                      Tag::parent_death_signal})
    EXPECT_EQ(std::find(last, list.rend(), t), list.rend()) << static_cast<int>(t);
}

TEST_F(RestoredUser, CredentialsComeBeforeWhatTheKernelDoesForTheTask) {
  start([] {
    become_user();
    timer_t timer;
    ::timer_create(CLOCK_MONOTONIC, nullptr, &timer);
    static char stack[65536];
    const stack_t alternate{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
    ::sigaltstack(&alternate, nullptr);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
    ::raise(SIGUSR1);
  });
  dump();
  const ImageSet images = ImageSet::load(open_path(folder_, O_RDONLY | O_DIRECTORY).get());
  TaskImage task = read_task(images, read_tree(images).front());
  task.tids.push_back(task.pid + 1);  // like the first
  task.cores.push_back(task.cores.front());
  std::vector<std::byte> memory(1 << 20);
  Region region(reinterpret_cast<uint64_t>(memory.data()));
  OpList list;
  plan_task(task, {.root = -1, .cwd = 5, .change_root = false}, 0, region, list);
  ASSERT_LE(region.bytes().size(), memory.size());
  std::ranges::copy(region.bytes(), memory.begin());
  expect_order(tags(list.records().data(), list.records().size()));
  int threads = 0;
  for (const restorer::Record& r : list.records()) {
    if (r.op != restorer::Op::clone_thread) continue;
    ++threads;
    const auto* own = reinterpret_cast<const restorer::List*>(r.args[1]);
    expect_order(tags(reinterpret_cast<const restorer::Record*>(own->records), own->count));
  }
  EXPECT_EQ(threads, 1);
}

/// Signals of another kind fill the same queue of the user root, while a shell is still root.
class RootsQueue {
 public:
  RootsQueue() {
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGRTMIN + 1);
    ::sigprocmask(SIG_BLOCK, &blocked, &before_);
    for (int i = 0; i < 5; ++i) ::sigqueue(::getpid(), SIGRTMIN + 1, {});
  }
  ~RootsQueue() {
    sigset_t ours;
    ::sigemptyset(&ours);
    ::sigaddset(&ours, SIGRTMIN + 1);
    const timespec now{};
    while (::sigtimedwait(&ours, nullptr, &now) > 0) {
    }
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t before_{};
};

TEST_F(RestoredUser, ASignalQueueMayBeAsFullAsItsLimit) {
  constexpr int kSignals = 12, kTimers = 3;
  start(
      [] {
        const rlimit limit{kSignals + kTimers, kSignals + kTimers};
        ::setrlimit(RLIMIT_SIGPENDING, &limit);
        become_user();
        sigset_t blocked;
        ::sigemptyset(&blocked);
        ::sigaddset(&blocked, SIGRTMIN);
        ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
        for (int i = 0; i < kTimers; ++i) {
          timer_t timer;
          if (::timer_create(CLOCK_MONOTONIC, nullptr, &timer) != 0) ::_exit(4);
        }
        for (int i = 0; i < kSignals; ++i)
          if (::sigqueue(::getpid(), SIGRTMIN, {.sival_int = i}) != 0) ::_exit(4);
        if (::sigqueue(::getpid(), SIGRTMIN, {}) == 0) ::_exit(5);
      },
      [] {
        sigset_t ours;
        ::sigemptyset(&ours);
        ::sigaddset(&ours, SIGRTMIN);
        std::string text = std::to_string(::sigqueue(::getpid(), SIGRTMIN, {}));
        const timespec now{};
        siginfo_t info;
        while (::sigtimedwait(&ours, &info, &now) > 0) text += " " + std::to_string(info.si_int);
        return text;
      });
  dump();
  const RootsQueue other;
  restore();
  const auto status = ProcDir(pid_).status();
  EXPECT_EQ(status.at("SigQ"), "15/15");
  EXPECT_EQ(ask(), "-1 0 1 2 3 4 5 6 7 8 9 10 11");
}

std::string keyring() {
  std::array<char, 512> text{};
  const long id = ::syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
  ::syscall(SYS_keyctl, KEYCTL_DESCRIBE, id, text.data(), text.size());
  return text.data();
}

long ioprio() { return ::syscall(SYS_ioprio_get, 1, 0); }

TEST_F(RestoredUser, NothingOfTheRestoringProcessIsInherited) {
  start(become_user, [] {
    std::string filter = read_file_at(AT_FDCWD, "/proc/self/coredump_filter");
    return keyring() + " nice " + std::to_string(::getpriority(PRIO_PROCESS, 0)) + " ioprio " +
           std::to_string(ioprio()) + " slack " + std::to_string(::prctl(PR_GET_TIMERSLACK)) + " filter " + filter +
           " ambient " + ProcDir(::getpid()).status().at("CapAmb") + " memlock " + [] {
             rlimit limit{};
             ::getrlimit(RLIMIT_MEMLOCK, &limit);
             return std::to_string(limit.rlim_cur);
           }();
  });
  // What an image may leave out.
  dump([this](ImageSet& images) {
    change<img::core_entry>(images, core_name(), magic::kCore, [](img::core_entry& core) {
      core.mutable_thread_core()->clear_sched_nice();
      core.mutable_tc()->mutable_rlimits()->mutable_rlimits(RLIMIT_MEMLOCK)->set_cur(4096);
    });
    images.adopt("migrate-ext.img", ImageSet().images().empty() ? [] {
      ImageSet none;
      none.write("migrate-ext.img", magic::kMigrateExt);
      return none.images().at("migrate-ext.img");
    }() : std::vector<std::byte>());
  });
  in_other_surroundings([this] {
    ::syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "of-root");
    const std::string of_root = keyring();
    ::setpriority(PRIO_PROCESS, 0, -3);
    ::syscall(SYS_ioprio_set, 1, 0, 1 << 13 | 4);
    ::prctl(PR_SET_TIMERSLACK, 7'000'000);
    std::ofstream("/proc/self/coredump_filter") << "0x7f";
    restore();
    const std::string told = ask();
    EXPECT_TRUE(of_root.empty() || told.find("of-root") == std::string::npos) << told;
    EXPECT_NE(told.find(" nice 0 ioprio "), std::string::npos) << told;
    EXPECT_EQ(told.find("ioprio " + std::to_string(1 << 13 | 4)), std::string::npos) << told;
    EXPECT_NE(told.find(" slack 50000 filter 00000033"), std::string::npos) << told;
    EXPECT_NE(told.find(" ambient 0000000000000000 memlock 4096"), std::string::npos) << told;
  });
}

TEST_F(RestoredUser, ADescriptorAtTheEndOfTheLimit) {
  in_other_surroundings([this] {
    const rlimit limit{256, 256};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    start(
        [this] {
          const int fd = ::open(at("file").c_str(), O_RDWR | O_CREAT, 0600);
          if (::dup2(fd, 255) != 255 || ::dup2(fd, 70) != 70 || ::dup2(fd, 200) != 200) ::_exit(3);
          ::close(fd);
        },
        [] {
          std::string text;
          for (const int fd : ProcDir(::getpid()).descriptors()) text += std::to_string(fd) + " ";
          return text;
        });
    dump();
    restore();
    const std::string told = ask();
    EXPECT_NE(told.find("70 200 255 "), std::string::npos) << told;
    EXPECT_EQ(told.substr(0, 6), "0 1 2 ") << told;
  });
}

TEST_F(RestoredUser, AnExecutableMayBeGone) {
  const std::string program = at("program");
  std::filesystem::copy_file("/bin/sleep", program);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setsid();
    const int null = ::open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
    ::close_range(3, ~0u, 0);
    ::execl(program.c_str(), "sleep", "1000", nullptr);
    ::_exit(1);
  }
  const std::string exe = "/proc/" + std::to_string(pid_) + "/exe";
  ASSERT_TRUE(soon([&] { return read_link_at(AT_FDCWD, exe) == program && ProcDir(pid_).stat().state == 'S'; }));
  std::filesystem::remove(program);
  dump();
  restore();
  EXPECT_EQ(read_link_at(AT_FDCWD, exe), program + " (deleted)");
  EXPECT_TRUE(soon([&] { return ProcDir(pid_).stat().state == 'S'; }));
  EXPECT_FALSE(std::filesystem::exists(program));
}

TEST(DescriptorRoom, IsWhereNoTaskHasDescriptors) {
  const auto table = [](std::vector<uint32_t> numbers) {
    ImageSet images;
    ImageWriter out = images.write("fdinfo-1.img", magic::kFdinfo);
    for (const uint32_t n : numbers) {
      img::fdinfo_entry e;
      e.set_id(1), e.set_flags(0), e.set_type(img::fd_types::REG), e.set_fd(n);
      out.entry(e);
    }
    return images;
  };
  EXPECT_EQ(find_descriptor_room(table({0, 1, 2}), 20, 1024).floor, kLowestFloor);
  EXPECT_EQ(find_descriptor_room(table({0, 500}), 20, 1024).floor, 501);
  const DescriptorRoom gap = find_descriptor_room(table({0, 10, 40, 1023}), 20, 1024);
  EXPECT_EQ(gap.floor, 11);
  EXPECT_EQ(gap.end, 40);
  EXPECT_THROW(find_descriptor_room(table({2000}), 20, 1024), Refusal);
  std::vector<uint32_t> all(1024);
  for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
  EXPECT_THROW(find_descriptor_room(table(all), 20, 1024), Refusal);
}

TEST_F(RestoredUser, WhatARestoreWouldRefuseIsNotKilled) {
  start(become_user);
  Dump dump({.root = Pid(pid_)}, *log_);
  EXPECT_NO_THROW(check_restorable(dump.images(), dump.memories(), false));
  in_other_surroundings([&] {
    pid_ = 0;  // the test's
    ::prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE);
    const rlimit limit{100, 100};
    ::setrlimit(RLIMIT_MEMLOCK, &limit);
    EXPECT_THROW(check_restorable(dump.images(), dump.memories(), false), Refusal);
  });
}

TEST(RestoreMounts, ProcIsMaskedUnderARootFolder) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  std::string root = "/tmp/migrate-root-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  for (const bool masked : {false, true}) {
    const pid_t child = ::fork();
    if (child == 0) {
      if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) ::_exit(2);
      if (::mount("/", root.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) ::_exit(3);
      try {
        set_up_mounts(masked ? root : "");
      } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
        ::_exit(4);
      }
      const auto readable = [](const char* path) {
        std::ifstream in(path);
        char c;
        return in.get(c).good();
      };
      bool good = readable("/proc/self/status") && readable("/proc/version");
      if (::access("/proc/timer_list", F_OK) == 0) good &= readable("/proc/timer_list") != masked;
      const int fd = ::open("/proc/sys/kernel/core_pattern", O_WRONLY);
      if (masked) good &= fd < 0 && errno == EROFS;
      if (!masked) good &= fd >= 0;
      if (masked && ::access("/proc/sysrq-trigger", F_OK) == 0) {
        struct stat st {
        }, null{};
        good &=
            ::stat("/proc/sysrq-trigger", &st) == 0 && ::stat("/dev/null", &null) == 0 && st.st_rdev == null.st_rdev;
      }
      ::_exit(good ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0) << (masked ? "masked" : "as it is");
  }
  ::rmdir(root.c_str());
}

}  // namespace
}  // namespace migrate

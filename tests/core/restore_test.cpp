#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <thread>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/image/magic.h"
#include "core/restore/address_space.h"
#include "core/restore/namespaces.h"
#include "core/restore/restore.h"
#include "core/restore/staged_areas.h"
#include "core/restore/tree_order.h"
#include "images/core.pb.h"
#include "tests/core/changed_images.h"

namespace migrate {
namespace {

TaskNode node(pid_t pid, pid_t ppid, pid_t pgid, pid_t sid, int parent) {
  TaskNode n;
  n.pid = pid;
  n.ppid = ppid;
  n.pgid = pgid;
  n.sid = sid;
  n.parent = parent;
  n.threads = {pid};
  return n;
}

std::vector<TaskNode> tree(std::vector<TaskNode> tasks) {
  for (size_t i = 1; i < tasks.size(); ++i)
    tasks[static_cast<size_t>(tasks[i].parent)].children.push_back(static_cast<int>(i));
  return tasks;
}

TEST(RestoreTreeOrder, ChildOfTheOldSessionIsForkedBeforeSetsid) {
  auto tasks = tree({node(10, 1, 10, 10, -1), node(11, 10, 11, 11, 0), node(12, 11, 10, 10, 1)});
  plan_tree(tasks, false);
  EXPECT_TRUE(tasks[0].new_session);
  EXPECT_TRUE(tasks[1].new_session);
  EXPECT_FALSE(tasks[1].before_setsid);
  EXPECT_TRUE(tasks[2].before_setsid);
  EXPECT_EQ(tasks[2].join_group, 10);
}

TEST(RestoreTreeOrder, DeadSessionLeaderIsPlayedByAHelper) {
  auto tasks = tree({node(10, 1, 10, 10, -1), node(12, 10, 11, 11, 0), node(13, 10, 13, 11, 0)});
  plan_tree(tasks, false);
  EXPECT_EQ(tasks[1].session_helper, 11);
  EXPECT_EQ(tasks[2].session_helper, 11);
  EXPECT_EQ(tasks[1].join_group, 11);
  EXPECT_EQ(tasks[1].group_helper, 0);
  EXPECT_TRUE(tasks[2].new_group);
}

TEST(RestoreTreeOrder, ShellJobInheritsWhatIsOutside) {
  auto tasks = tree({node(10, 1, 9, 5, -1), node(11, 10, 11, 5, 0)});
  plan_tree(tasks, true);
  EXPECT_EQ(tasks[0].session_helper, 0);
  EXPECT_EQ(tasks[0].join_group, 0);
  EXPECT_TRUE(tasks[1].new_group);
  tasks = tree({node(10, 1, 9, 5, -1)});
  plan_tree(tasks, false);
  EXPECT_EQ(tasks[0].session_helper, 5);
  EXPECT_EQ(tasks[0].group_helper, 9);
}

TEST(RestoreTreeOrder, SessionOfASiblingsDescendantIsRefused) {
  auto tasks = tree({node(10, 1, 10, 10, -1), node(11, 10, 11, 11, 0), node(12, 10, 12, 11, 0)});
  EXPECT_THROW(plan_tree(tasks, false), Refusal);
}

// Parents may collect late what was dumped a moment ago.
TEST(RestorePids, APidIsWaitedForUntilItsZombieIsCollected) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const pid_t zombie = ::fork();
  ASSERT_GE(zombie, 0);
  if (zombie == 0) ::_exit(0);
  std::jthread collector([zombie] {
    std::this_thread::sleep_for(std::chrono::milliseconds(700));  // longer than anything else may have the pid
    ::waitpid(zombie, nullptr, 0);
  });
  const pid_t again = fork_with_pid(zombie);
  if (again == 0) ::_exit(0);
  collector.join();
  EXPECT_EQ(again, zombie);
  EXPECT_EQ(::waitpid(again, nullptr, 0), again);
}

TEST(RestoreStaging, RangesAreFreeAndEqualModuloAHugePage) {
  std::vector<ImageVma> vmas(3);
  for (size_t i = 0; i < vmas.size(); ++i) {
    vmas[i].start = 0x40000000 + i * 0x301000;
    vmas[i].end = vmas[i].start + 0x201000;
    vmas[i].prot = PROT_READ | PROT_WRITE;
    vmas[i].flags = MAP_PRIVATE | MAP_ANONYMOUS;
  }
  std::vector<AddressRange> busy;
  for (const ImageVma& v : vmas) busy.push_back({v.start, v.end});
  const std::vector<size_t> staged = mappings_to_stage(
      vmas, std::vector<AddressRange>{{vmas[0].start, vmas[0].start + kPageSize}, {vmas[2].start, vmas[2].end}});
  ASSERT_EQ(staged, (std::vector<size_t>{0, 2}));
  std::vector<AddressRange> ranges;
  for (const size_t i : staged) ranges.push_back({vmas[i].start, vmas[i].end});
  const uint64_t distance = pick_distance(ranges, busy, own_mappings());
  for (const AddressRange& r : ranges) {
    const AddressRange at{staged_address(r.start, distance), staged_address(r.start, distance) + (r.end - r.start)};
    EXPECT_EQ(at.start % kHugePageSize, r.start % kHugePageSize);
    for (const AddressRange& b : busy) EXPECT_TRUE(at.end <= b.start || at.start >= b.end);
  }
}

TEST(RestoreImages, HostileMappingsAreThrownOut) {
  img::mm_entry mm;
  auto* v = mm.add_vmas();
  v->set_start(0x2000);
  v->set_end(0x1000);
  v->set_pgoff(0);
  v->set_shmid(0);
  v->set_prot(3);
  v->set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
  v->set_status(1);
  v->set_fd(-1);
  EXPECT_THROW(read_vmas(mm, 42), Corrupt);
  v->set_end(0x3000);
  EXPECT_EQ(read_vmas(mm, 42).size(), 1u);
  *mm.add_vmas() = *v;
  EXPECT_THROW(read_vmas(mm, 42), Corrupt);
  mm.mutable_vmas(1)->set_start(kUserEnd);
  mm.mutable_vmas(1)->set_end(kUserEnd + 0x1000);
  EXPECT_THROW(read_vmas(mm, 42), Corrupt);
}

TEST(RestoreImages, GuardsAndSharedObjectsThatCannotBeAreThrownOut) {
  img::mm_entry mm;
  const auto add = [&mm](uint64_t start, uint64_t end, uint64_t pgoff, uint32_t flags, uint32_t status) {
    auto* v = mm.add_vmas();
    v->set_start(start);
    v->set_end(end);
    v->set_pgoff(pgoff);
    v->set_shmid(7);
    v->set_prot(3);
    v->set_flags(flags | MAP_ANONYMOUS);
    v->set_status(status);
    v->set_fd(-1);
  };
  std::vector<ImageVma> guards;
  add(0x10000, 0x20000, 0, MAP_PRIVATE, kVmaAnonPrivate);
  add(0x11000, 0x12000, 0, MAP_PRIVATE, kVmaGuard);
  add(0x12000, 0x13000, 0, MAP_PRIVATE, kVmaGuard);
  add(0x20000, 0x22000, kUserEnd - 0x2000, MAP_SHARED, kVmaAnonShared);
  EXPECT_EQ(read_vmas(mm, 42, &guards).size(), 2u);
  EXPECT_EQ(guards.size(), 2u);
  mm.mutable_vmas(3)->set_pgoff(uint64_t{1} << 60);
  EXPECT_THROW(read_vmas(mm, 42, &guards), Corrupt);
  mm.mutable_vmas(3)->set_pgoff(0);
  mm.mutable_vmas(2)->set_start(0x11000);
  EXPECT_THROW(read_vmas(mm, 42, &guards), Corrupt);
}

/// Appends a byte to `path` every few milliseconds, for ever; as user `uid`, who could not open it, if that is not 0.
[[noreturn]] void grow(const std::string& path, uid_t uid) {
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
  ::close_range(3, ~0u, 0);
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (uid != 0 && (::setgroups(0, nullptr) != 0 || ::setresgid(uid, uid, uid) != 0 || ::setresuid(uid, uid, uid) != 0))
    ::_exit(1);
  for (;;) {
    if (::write(file, "x", 1) != 1) ::_exit(1);
    ::usleep(2000);
  }
}

bool grows_beyond(const std::string& path, uint64_t bytes) {
  const Deadline deadline = Deadline::in(std::chrono::seconds(10));
  while (!deadline.passed()) {
    struct stat st {};
    if (::stat(path.c_str(), &st) == 0 && static_cast<uint64_t>(st.st_size) > bytes) return true;
    ::usleep(1000);
  }
  return false;
}

/// A dump of `grow`, which is dead afterwards.
ImageSet dumped(const std::string& folder, pid_t& pid, uid_t uid = 0) {
  const auto log = null_logger();
  pid = ::fork();
  if (pid == 0) grow(folder + "/growing", uid);
  EXPECT_TRUE(grows_beyond(folder + "/growing", 5));
  const Fd dir = open_path(folder, O_RDONLY | O_DIRECTORY);
  {
    Dump dump({.root = Pid(pid)}, *log);
    write_page_images(dump, dir.get());
    dump.images().save(dir.get());
    dump.tree().kill();
  }
  ::waitpid(pid, nullptr, 0);
  return ImageSet::load(dir.get());
}

/// The process is restored in place behind a gate of that kind; none: stopped by ptrace alone.
void go_on_in_place(std::optional<CgroupVersion> gate_version, uid_t uid = 0) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const auto log = null_logger();
  std::optional<FreezerCgroup> gate;
  try {
    if (gate_version) gate = FreezerCgroup::create("migrate-test-" + std::to_string(::getpid()), *gate_version);
  } catch (const Refusal& e) {
    GTEST_SKIP() << e.what();
  }
  std::string folder = "/tmp/migrate-restore-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/growing";
  pid_t child = 0, alive = 0;
  try {
    const ImageSet images = dumped(folder, child, uid);
    const Fd dir = open_path(folder, O_RDONLY | O_DIRECTORY);
    const uint64_t before = std::filesystem::file_size(path);
    Restore restore(RestoreOptions{}, *log);
    restore.prepare(images, gate ? &*gate : nullptr);
    restore.fill_from(dir.get());
    restore.finish(images);
    EXPECT_EQ(std::filesystem::file_size(path), before) << "it ran before the gate opened";
    if (gate) {
      EXPECT_TRUE(gate->frozen());
    }
    restore.open_gate();
    alive = restore.root().get();
    EXPECT_EQ(alive, child);
    EXPECT_TRUE(grows_beyond(path, before + 5));
  } catch (const std::exception& e) {
    ADD_FAILURE() << e.what();
  }
  if (alive > 0) {
    ::kill(alive, SIGKILL);
    ::waitpid(alive, nullptr, 0);
  }
  if (gate) gate->dissolve();
  std::filesystem::remove_all(folder);
}

TEST(RestoreEndToEnd, ProcessGoesOnInPlace) { go_on_in_place(std::nullopt); }
TEST(RestoreEndToEnd, ProcessGoesOnBehindAVersion1Gate) { go_on_in_place(CgroupVersion::v1); }
TEST(RestoreEndToEnd, ProcessGoesOnBehindAVersion2Gate) { go_on_in_place(CgroupVersion::v2); }

TEST(RestoreEndToEnd, WorkerGoesOnWithTheFileThatRootOpened) { go_on_in_place(std::nullopt, 65534); }

/// A worker of user 65534 with a file of root's in a folder of root's, which `plant` changes meanwhile.
void worker_is_refused(const std::string& part, RestoreOptions options,
                       const std::function<void(const std::string&)>& plant) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  std::string folder = "/tmp/migrate-restore-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const auto log = null_logger();
  pid_t pid = 0;
  const ImageSet images = dumped(folder, pid, 65534);
  const Fd dir = open_path(folder, O_RDONLY | O_DIRECTORY);
  plant(folder);
  const std::vector<pid_t> before = ProcDir(::getpid()).children();
  try {
    Restore restore(options, *log);
    restore.prepare(images, nullptr);
    restore.fill_from(dir.get());
    restore.finish(images);
    ADD_FAILURE() << "it got the file";
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
  EXPECT_NE(::kill(pid, 0), 0);
  EXPECT_EQ(ProcDir(::getpid()).children().size(), before.size());
  std::filesystem::remove_all(folder);
  std::filesystem::remove_all(folder + ".old");
}

TEST(RestoreRights, AFolderThatOthersCanChangeIsNotOpenedByRoot) {
  worker_is_refused("can be changed by others than root", {},
                    [](const std::string& folder) { ASSERT_EQ(::chown(folder.c_str(), 65534, 65534), 0); });
}

TEST(RestoreRights, ALinkOfAUsersInTheFoldersPlaceIsNotFollowed) {
  worker_is_refused("growing, which user 65534 may not use here", {}, [](const std::string& folder) {
    std::filesystem::rename(folder, folder + ".old");
    std::filesystem::create_symlink(folder + ".old", folder);
    ASSERT_EQ(::lchown(folder.c_str(), 65534, 65534), 0);
  });
}

TEST(RestoreRights, NothingIsOpenedByRootForHostileImages) {
  worker_is_refused("user 65534 may not use here", {.own_namespaces = true, .files_by_root = false},
                    [](const std::string&) {});
}

/// Each failing in another stage.
std::vector<std::pair<const char*, std::function<void(ImageSet&, const std::string&)>>> damages() {
  const auto mm = [](std::function<void(img::mm_entry&)> how) {
    return
        [how](ImageSet& i, const std::string& pid) { change<img::mm_entry>(i, "mm-" + pid + ".img", magic::kMm, how); };
  };
  const auto core = [](std::function<void(img::core_entry&)> how) {
    return [how](ImageSet& i, const std::string& pid) {
      change<img::core_entry>(i, "core-" + pid + ".img", magic::kCore, how);
    };
  };
  return {
      {"the executable is no file of the images", mm([](auto& e) { e.set_exe_file_id(987654); })},
      {"the blob: a layout the kernel refuses", mm([](auto& e) { e.set_mm_start_code(e.mm_end_code() + 4096); })},
      {"the blob: a robust list of wrong length", core([](auto& e) {
         e.mutable_thread_core()->set_futex_rla(4096);
         e.mutable_thread_core()->set_futex_rla_len(7);
       })},
      {"the last step: registers", core([](auto& e) { e.mutable_thread_info()->mutable_fpregs()->clear_st_space(); })},
  };
}

std::vector<pid_t> sorted(std::vector<pid_t> pids) {
  std::sort(pids.begin(), pids.end());
  return pids;
}

TEST(RestoreFailure, ComesBackAtOnceAndLeavesNothing) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  std::string folder = "/tmp/migrate-restore-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const auto log = null_logger();
  pid_t pid = 0;
  const ImageSet good = dumped(folder, pid);
  // Other tests in this process may have left orphans to us.
  const std::vector<pid_t> others = sorted(ProcDir(::getpid()).children());
  const Fd dir = open_path(folder, O_RDONLY | O_DIRECTORY);
  for (const bool own : {false, true}) {
    for (const auto& [what, damage] : damages()) {
      SCOPED_TRACE(what);
      ImageSet images;
      for (const auto& [name, bytes] : good.images()) images.adopt(name, bytes);
      damage(images, std::to_string(pid));
      FreezerCgroup gate = FreezerCgroup::create("migrate-test-" + std::to_string(::getpid()));
      const auto start = std::chrono::steady_clock::now();
      EXPECT_THROW(
          {
            Restore restore({.own_namespaces = own}, *log);
            restore.prepare(images, &gate);
            restore.fill_from(dir.get());
            restore.finish(images);
          },
          Error);
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
      EXPECT_TRUE(gate.members().empty());
      EXPECT_TRUE(own || ::kill(pid, 0) != 0);
      const std::vector<pid_t> children = sorted(ProcDir(::getpid()).children());
      EXPECT_TRUE(std::includes(others.begin(), others.end(), children.begin(), children.end())) << "a child is left";
      gate.dissolve();
    }
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace migrate

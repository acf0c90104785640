// What limits of memory cgroups leave for programs, in the hierarchy of this machine that has them.
#include "core/freeze/memory_room.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/freeze/throttle_ways.h"

namespace migrate {
namespace {

constexpr uint64_t kLimit = 64 << 20, kInner = 48 << 20, kHad = 16 << 20;

/// One with a limit, in which is one without; gone at the end.
class MemoryRooms : public testing::Test {
 protected:
  void SetUp() override {
    const std::string mounts = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
    auto mount = find_cgroup_mount(mounts, false, "memory");
    v2_ = !mount;
    if (v2_) mount = find_cgroup_mount(mounts, true);
    if (!mount) GTEST_SKIP() << "no hierarchy is mounted";
    if (v2_) write_cgroup_file(mount->point + "/cgroup.subtree_control", "+memory");
    outer_ = mount->point + "/migrate-room-" + std::to_string(::getpid());
    if (::mkdir(outer_.c_str(), 0755) != 0 || !limit(outer_, kLimit))
      GTEST_SKIP() << "no memory cgroup can be made here";
    if (v2_) write_cgroup_file(outer_ + "/cgroup.subtree_control", "+memory");
    ASSERT_EQ(::mkdir(inner().c_str(), 0755), 0);
  }
  void TearDown() override {
    if (outer_.empty()) return;
    ::rmdir(inner().c_str());
    EXPECT_EQ(::rmdir(outer_.c_str()), 0);
  }
  std::string inner() const { return outer_ + "/inner"; }
  bool limit(const std::string& folder, uint64_t bytes) const {
    return write_cgroup_file(folder + (v2_ ? "/memory.max" : "/memory.limit_in_bytes"), std::to_string(bytes)) == 0;
  }

  bool v2_ = false;
  std::string outer_;
};

TEST_F(MemoryRooms, TheTightestLimitOnTheWayUpCounts) {
  const uint64_t host = memory_available();
  ASSERT_GT(host, kLimit);
  EXPECT_EQ(memory_room({}).where, "");
  // Some swap may be free as well, which differs from moment to moment.
  const MemoryRoom outer = memory_room({inner()});
  EXPECT_EQ(outer.where, outer_);
  EXPECT_GE(outer.bytes, kLimit - (1 << 20)) << "the kernel charges a cgroup for itself, too";
  ASSERT_TRUE(limit(inner(), kInner));
  EXPECT_EQ(memory_room({inner()}).where, inner());
  EXPECT_EQ(memory_room({inner() + "/nothing"}).where, "") << "a folder that is none";
}

TEST_F(MemoryRooms, WhatIsHadIsNotToBeHad) {
  const MemoryRoom before = memory_room({inner()});
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(pipe[0]);
    demand_write_cgroup_file(inner() + "/cgroup.procs", "0");
    void* at = ::mmap(nullptr, kHad, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    const char good = at != MAP_FAILED ? 'y' : 'n';
    if (::write(pipe[1], &good, 1) == 1) ::pause();
    ::_exit(0);
  }
  ::close(pipe[1]);
  char good = 0;
  EXPECT_EQ(::read(pipe[0], &good, 1), 1);
  EXPECT_EQ(good, 'y');
  const MemoryRoom now = memory_room_at(child);
  EXPECT_EQ(now.where, outer_);
  EXPECT_LE(now.bytes + kHad, before.bytes + (1 << 20));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(pipe[0]);
}

TEST_F(MemoryRooms, WhoIsMovedIsLookedUpAgain) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  MemoryPlace place(child);
  EXPECT_NE(place.room().where, outer_);
  demand_write_cgroup_file(inner() + "/cgroup.procs", std::to_string(child));
  EXPECT_EQ(place.room().where, outer_);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace migrate

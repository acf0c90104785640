// The cgroup that an operator names for received programs, in the hierarchies of this machine.
#include "core/freeze/named_cgroup.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "core/freeze/cgroup_mounts.h"

namespace migrate {
namespace {

constexpr uid_t kUser = 65534;

/// One of that name in v2, or in the first hierarchy of v1 where one can be made, with one below it; gone at the end.
class NamedCgroups : public testing::Test {
 protected:
  void SetUp() override {
    const std::string text = read_file_at(AT_FDCWD, "/proc/self/mountinfo");
    std::vector<CgroupMount> mounts = all_cgroup_mounts(text);
    if (const auto v2 = find_cgroup_mount(text, true)) mounts.insert(mounts.begin(), *v2);
    for (const CgroupMount& mount : mounts) {
      folder_ = mount.point + outer_;
      if (::mkdir(folder_.c_str(), 0755) == 0) break;
      folder_.clear();
    }
    if (folder_.empty()) GTEST_SKIP() << "no cgroup can be made here";
    ASSERT_EQ(::mkdir((folder_ + "/inner").c_str(), 0755), 0);
  }
  void TearDown() override {
    if (folder_.empty()) return;
    EXPECT_EQ(::rmdir((folder_ + "/inner").c_str()), 0);
    EXPECT_EQ(::rmdir(folder_.c_str()), 0);
  }
  std::string refusal(const std::string& path, const std::vector<uid_t>& users = {}) const {
    try {
      find_named_cgroup(path, users);
    } catch (const Refusal& e) {
      return e.what();
    }
    return "none";
  }

  const std::string outer_ = "/migrate-named-" + std::to_string(::getpid()), inner_ = outer_ + "/inner";
  std::string folder_;
};

TEST_F(NamedCgroups, ItIsFoundWhereItIs) {
  const NamedCgroup found = find_named_cgroup(inner_, {});
  EXPECT_EQ(found.folders, std::vector{folder_ + "/inner"});
  for (const std::string& point : found.without)
    EXPECT_NE(::access((point + inner_).c_str(), F_OK), 0) << point << " has it";
  EXPECT_EQ(find_named_cgroup("/" + outer_ + "/inner/", {}).folders, found.folders);
  try_named_cgroup(found);
  EXPECT_EQ(read_file_at(AT_FDCWD, found.folders[0] + "/cgroup.procs"), "") << "somebody stayed";
}

TEST_F(NamedCgroups, ThatOfAllIsOne) { EXPECT_FALSE(find_named_cgroup("/", {}).folders.empty()); }

TEST_F(NamedCgroups, WhatIsNotThereIsRefused) {
  const std::string why = refusal(inner_ + "/none");
  EXPECT_NE(why.find("no cgroup hierarchy has " + inner_ + "/none; make it (mkdir -p "), std::string::npos) << why;
  // Not in one that happens to be mounted first, by which nobody stops a service.
  const auto v2 = find_cgroup_mount(read_file_at(AT_FDCWD, "/proc/self/mountinfo"), true);
  if (v2) {
    EXPECT_NE(why.find("mkdir -p " + v2->point + inner_ + "/none)"), std::string::npos) << why;
  }
}

TEST_F(NamedCgroups, WhatIsNoPathIsRefused) {
  for (const std::string& path : {std::string("inner"), std::string(), outer_ + "/../" + inner_, outer_ + "/./inner"})
    EXPECT_NE(refusal(path).find("is not the path of a cgroup"), std::string::npos) << path;
}

// He could move what is there to where he stops and kills it.
TEST_F(NamedCgroups, OneThatAUserMayChangeIsForHisProgramsOnly) {
  for (const char* what : {"", "/cgroup.procs", "/inner", "/inner/cgroup.procs"}) {
    ASSERT_EQ(::chown((folder_ + what).c_str(), kUser, kUser), 0);
    for (const std::vector<uid_t>& users : {std::vector<uid_t>{}, {0}, {kUser, 1}})
      EXPECT_NE(refusal(inner_, users).find(folder_ + what + " may be changed by user 65534"), std::string::npos);
    EXPECT_EQ(find_named_cgroup(inner_, {kUser}).folders, std::vector{folder_ + "/inner"}) << what;
    ASSERT_EQ(::chown((folder_ + what).c_str(), 0, 0), 0);
  }
  ASSERT_EQ(::chmod((folder_ + "/cgroup.procs").c_str(), 0666), 0);
  EXPECT_NE(refusal(inner_, {kUser}).find("may be changed"), std::string::npos);
}

TEST_F(NamedCgroups, OneThatTakesNoProcessIsRefused) {
  // Of a cgroup that is gone.
  const NamedCgroup gone{.folders = {folder_ + "/gone"}, .without = {}};
  EXPECT_THROW(try_named_cgroup(gone), Refusal);
  // v2 only: below threaded cgroups, and what they hang on, there is none that could be frozen with a tree in it.
  const std::string type = folder_ + "/inner/cgroup.type";
  if (::access(type.c_str(), F_OK) != 0) return;
  const Fd file = open_path(type, O_WRONLY);
  ASSERT_EQ(::write(file.get(), "threaded", 8), 8);
  for (const std::string& threaded : {inner_, outer_})
    EXPECT_THROW(try_named_cgroup(find_named_cgroup(threaded, {})), Refusal) << threaded;
}

}  // namespace
}  // namespace migrate

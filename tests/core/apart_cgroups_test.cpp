// Cgroups for processes of ours apart from the one that they were started in, in the hierarchies of this machine.
#include "core/freeze/apart_cgroups.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

std::string name() { return "migrate-apart-" + std::to_string(::getpid()); }

/// In a process of its own, which what fails there ends with 1.
void expect_in_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

void enter(const std::string& folder) {
  const Fd procs = open_path(folder + "/cgroup.procs", O_WRONLY);
  ASSERT_EQ(::write(procs.get(), "0", 1), 1) << folder;
}

bool is_there(const std::string& folder) { return ::access(folder.c_str(), F_OK) == 0; }

/// Folders of that name, gone at the end.
struct Made {
  std::vector<std::string> folders;
  explicit Made(const std::string& below = name()) {
    for (const std::string& parent : find_apart_parents().folders) folders.push_back(parent + "/" + below);
    make_cgroups(folders);
  }
  ~Made() {
    for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) ::rmdir(folder->c_str());
  }
};

TEST(ApartCgroups, AProcessIsInAllAndTheyGoWithIt) {
  if (find_apart_parents().folders.empty()) GTEST_SKIP() << "no cgroup can be made here";
  const Made made;
  expect_in_child([&] {
    for (const std::string& folder : made.folders) enter(folder);
    const std::string all = read_file_at(AT_FDCWD, "/proc/self/cgroup");
    size_t in = 0;
    for (size_t at = 0; (at = all.find(name().substr(0, 14), at)) != std::string::npos; ++at) ++in;
    EXPECT_EQ(in, made.folders.size()) << all;
    EXPECT_THROW(remove_cgroups(made.folders, milliseconds(5)), Error) << "somebody is in them";
    for (const std::string& folder : made.folders) EXPECT_TRUE(is_there(folder));
  });
  remove_cgroups(made.folders, milliseconds(5000));
  for (const std::string& folder : made.folders) EXPECT_FALSE(is_there(folder));
  EXPECT_NO_THROW(remove_cgroups(made.folders, milliseconds(0)));
}

// Whoever kills the cgroup that it was started in, with all below.
TEST(ApartCgroups, TheyAreNotBelowTheOneThatAProcessIsIn) {
  if (find_apart_parents().folders.empty()) GTEST_SKIP() << "no cgroup can be made here";
  const Made outer("migrate-apart-outer-" + std::to_string(::getpid()));
  expect_in_child([&] {
    const ApartParents before = find_apart_parents();
    for (const std::string& folder : outer.folders) enter(folder);
    const ApartParents after = find_apart_parents();
    EXPECT_EQ(after.folders, before.folders);
    EXPECT_EQ(after.without, before.without);
  });
}

TEST(ApartCgroups, OneThatIsThereIsAnothers) {
  if (find_apart_parents().folders.empty()) GTEST_SKIP() << "no cgroup can be made here";
  const Made others;
  std::vector<std::string> wanted;
  for (const std::string& parent : find_apart_parents().folders) wanted.push_back(parent + "/" + name() + "-free");
  wanted.push_back(others.folders.back());
  EXPECT_THROW(make_cgroups(wanted), Error);
  EXPECT_TRUE(is_there(others.folders.back()));
  wanted.pop_back();
  for (const std::string& folder : wanted) EXPECT_FALSE(is_there(folder));
}

// A hierarchy of which nothing can be written to, and one whose outer cgroup is a user's.
TEST(ApartCgroups, WhereNoneCanBeMadeItSaysSo) {
  const ApartParents here = find_apart_parents();
  if (here.folders.empty()) GTEST_SKIP() << "no cgroup can be made here";
  expect_in_child([&] {
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    for (const std::string& folder : here.folders) {
      ASSERT_EQ(::mount(folder.c_str(), folder.c_str(), nullptr, MS_BIND, nullptr), 0);
      ASSERT_EQ(::mount(nullptr, folder.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr), 0);
    }
    const ApartParents there = find_apart_parents();
    EXPECT_TRUE(there.folders.empty()) << there.folders.front();
    EXPECT_NE(there.without.find("Read-only"), std::string::npos) << there.without;
  });
}

TEST(ApartCgroups, OneThatAUserMayWriteToIsPassedOver) {
  const ApartParents here = find_apart_parents();
  if (here.folders.empty()) GTEST_SKIP() << "no cgroup can be made here";
  // delegated > inner > innermost, where we are; the mounts show nothing above.
  const Made delegated("migrate-apart-user-" + std::to_string(::getpid()));
  std::vector<std::string> inner, innermost;
  for (const std::string& folder : delegated.folders) {
    inner.push_back(folder + "/inner");
    innermost.push_back(inner.back() + "/ours");
    ASSERT_EQ(::chown(folder.c_str(), 65534, 65534), 0);
  }
  make_cgroups(inner);
  make_cgroups(innermost);
  expect_in_child([&] {
    for (const std::string& folder : innermost) enter(folder);
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    const TempDir on_its_way;
    for (size_t i = 0; i < here.folders.size(); ++i) {
      ASSERT_EQ(::mount(delegated.folders[i].c_str(), on_its_way.path().c_str(), nullptr, MS_BIND, nullptr), 0);
      ASSERT_EQ(::umount2(here.folders[i].c_str(), MNT_DETACH), 0);
      ASSERT_EQ(::mount(on_its_way.path().c_str(), here.folders[i].c_str(), nullptr, MS_MOVE, nullptr), 0);
    }
    const ApartParents there = find_apart_parents();
    ASSERT_EQ(there.folders.size(), here.folders.size()) << there.without;
    for (size_t i = 0; i < here.folders.size(); ++i) EXPECT_EQ(there.folders[i], here.folders[i] + "/inner");
  });
  remove_cgroups(innermost, milliseconds(5000));
  remove_cgroups(inner, milliseconds(5000));
}

}  // namespace
}  // namespace migrate

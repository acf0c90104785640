// What the source asks before anything is touched, and what the destination answers: by whose right a tree has its
// files, and what only a capability can have given it.
#include <gtest/gtest.h>

#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "core/files/early_look.h"
#include "in_child.h"
#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/guardian/privileges.h"
#include "migrate/session/source/inventory.h"
#include "migrate/session/wire/channel.h"
#include "tests/core/failing_calls.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

constexpr uint32_t kUser = 65534, kOther = 1234;

class EarlyChecks : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ::chmod(dir_.path().c_str(), 0755);
    folder("home", kUser, 0755);
    folder("log", 0, 0755);
    add_user(kUser);
    add_user(kOther);
  }
  std::string at(const std::string& name) const { return dir_.path() + "/" + name; }
  void folder(const std::string& name, uint32_t owner, mode_t mode) const {
    ASSERT_EQ(::mkdir(at(name).c_str(), mode), 0);
    ASSERT_EQ(::chown(at(name).c_str(), owner, owner), 0);
  }
  void file(const std::string& name, uint32_t owner, mode_t mode) const {
    const Fd fd(::open(at(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(::fchown(fd.get(), owner, owner) == 0 && ::fchmod(fd.get(), mode) == 0);
  }
  void add_user(uint32_t uid) {
    wire::Check::Credentials* c = check_.add_credentials();
    c->set_uid(uid), c->set_gid(uid), c->set_capabilities(0);
  }
  static void describe(wire::Check::File& file, const std::string& path, uint32_t mode, uint32_t owner, FileUse use,
                       uint32_t flags, std::vector<uint32_t> holders) {
    file.set_path(path), file.set_type(mode & S_IFMT), file.set_mode(mode), file.set_uid(owner), file.set_gid(owner);
    wire::Check::Use* out = file.add_uses();
    out->set_use(static_cast<uint32_t>(use)), out->set_flags(flags);
    out->mutable_holders()->Add(holders.begin(), holders.end());
  }
  std::vector<std::string> answer(bool bounded = false) {
    ReceiveOptions options;
    if (bounded) options.allow_uids = {kUser};
    const uid_t before = ::geteuid();
    std::vector<std::string> reasons = what_is_in_the_way(check_, options).reasons;
    EXPECT_EQ(::geteuid(), before);
    EXPECT_EQ(own_credentials().uid, 0u);
    return reasons;
  }
  void refused(const std::string& part, bool bounded = false) {
    const std::vector<std::string> reasons = answer(bounded);
    ASSERT_EQ(reasons.size(), 1u) << part;
    EXPECT_NE(reasons.front().find(part), std::string::npos) << reasons.front();
    EXPECT_NE(reasons.front().find("; "), std::string::npos) << "not said what to do: " << reasons.front();
  }
  void taken(bool bounded = false) {
    const std::vector<std::string> reasons = answer(bounded);
    EXPECT_TRUE(reasons.empty()) << reasons.front();
  }

  TempDir dir_;
  wire::Check check_;
};

TEST_F(EarlyChecks, AnyHolderMayOpenAFile) {
  file("home/a", kOther, 0600);
  describe(*check_.add_files(), at("home/a"), S_IFREG | 0600, kOther, FileUse::opened, O_RDWR, {0});
  refused("home/a, which user 65534 may not use here: Permission denied");
  check_.mutable_files(0)->mutable_uses(0)->add_holders(1);
  taken();
}

TEST_F(EarlyChecks, RootOpensInSomebodysSteadWhereRootAloneCanHavePutIt) {
  file("log/a", 0, 0640);
  describe(*check_.add_files(), at("log/a"), S_IFREG | 0640, 0, FileUse::opened, O_WRONLY | O_APPEND, {0});
  taken();
  refused("Permission denied; ", true);
  check_.mutable_files(0)->set_mode(S_IFREG | 0600);
  refused("its mode is not what it was at the source");
}

TEST_F(EarlyChecks, WhatIsMadeNeedsAFolderThatItsUserMayWriteTo) {
  describe(*check_.add_made(), at("log/deleted"), S_IFREG | 0600, kUser, FileUse::deleted, 0, {0});
  refused("the deleted file " + at("log/deleted") + ", which user 65534", true);
  check_.mutable_made(0)->set_path(at("home/deleted"));
  taken(true);
  check_.clear_made();
  describe(*check_.add_made(), at("log/socket"), S_IFSOCK | 0600, kUser, FileUse::socket, 0, {0});
  refused("Unix socket " + at("log/socket") + ", which user 65534", true);
  check_.mutable_made(0)->set_path(at("home/socket"));
  taken(true);
  EXPECT_TRUE(std::filesystem::is_empty(at("home"))) << "something was made";
}

TEST_F(EarlyChecks, NothingIsOpened) {
  ASSERT_EQ(::mkfifo(at("home/fifo").c_str(), 0600), 0);
  ASSERT_EQ(::chown(at("home/fifo").c_str(), kUser, kUser), 0);
  describe(*check_.add_files(), at("home/fifo"), S_IFIFO | 0600, kUser, FileUse::opened, O_WRONLY, {0});
  taken(true);  // open(2) would wait for a reader
  check_.mutable_files(0)->mutable_uses(0)->set_holders(0, 1);
  refused("user 1234 may not use here");
  taken(true);  // about who may not come nothing is told but that
}

TEST_F(EarlyChecks, NobodyCanGiveACapabilityThatItLacks) {
  wire::Check::Privilege* limit = check_.add_privileges();
  limit->set_kind(static_cast<uint32_t>(Privilege::Kind::hard_limit)), limit->set_task(42);
  limit->set_held(own_credentials().capabilities);
  taken();
  limit->set_held(limit->held() | uint64_t{1} << 62);
  refused("task 42 has capability number 62, which the receiver lacks");
}

TEST_F(EarlyChecks, StrangersAreNoMatterWhereAnybodyMayCome) {
  wire::Check::Stranger* stranger = check_.add_strangers();
  stranger->set_task(42), stranger->set_fd(7), stranger->set_uid(0), stranger->set_gid(0);
  taken();
  refused("task 42 has fd 7, a Unix socket, which says that user 0 in group 0 made its other end (SO_PEERCRED)", true);
}

TEST_F(EarlyChecks, NobodyCanGiveALowerScoreOrMoreSignalsThanItMay) {
  rlimit signals{};
  ASSERT_EQ(::getrlimit(RLIMIT_SIGPENDING, &signals), 0);
  wire::Check::Extreme* queued = check_.mutable_queued_signals();
  queued->set_task(42), queued->set_value(static_cast<int64_t>(signals.rlim_max));
  taken();
  queued->set_value(queued->value() + 1);
  refused("queued signals and timers, and the receiver's own limit is");
  check_.clear_queued_signals();
  check_.mutable_lowest_oom_score()->set_task(42), check_.mutable_lowest_oom_score()->set_value(1000);
  taken();
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct sets[2] = {};
    ::syscall(SYS_capget, &header, sets);
    sets[0].effective &= ~(1u << CAP_SYS_RESOURCE), sets[0].permitted &= ~(1u << CAP_SYS_RESOURCE);
    ::syscall(SYS_capset, &header, sets);
    check_.mutable_lowest_oom_score()->set_value(-1000);
    refused("task 42 has oom_score_adj -1000, lower than the receiver may give it; ");
    ::_exit(HasFailure() ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(EarlyChecks, ThreadsCount) {
  for (const uint32_t pid : {10u, 11u}) check_.add_pids(pid);
  check_.set_threads(9'998);
  taken();
  check_.set_threads(9'999);
  refused("the program has 2 tasks with 9999 more threads, and the receiver takes 10000 (--max-tasks)");
}

TEST_F(EarlyChecks, NobodysNumberIsRefused) {
  wire::Message message;
  describe(*check_.add_files(), at("home/a"), S_IFREG | 0600, 0, FileUse::opened, O_RDONLY, {1});
  *message.mutable_check() = check_;
  EXPECT_NO_THROW(check_bounds(message));
  message.mutable_check()->mutable_files(0)->mutable_uses(0)->set_holders(0, 2);
  EXPECT_THROW(check_bounds(message), Corrupt);
}

/// A process with things that can be looked at.
class Holder {
 public:
  explicit Holder(const std::function<void()>& set_up) {
    int ready[2] = {-1, -1};
    if (::pipe2(ready, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      set_up();
      if (::write(ready[1], "x", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char x = 0;
    if (::read(ready[0], &x, 1) != 1) std::abort();
    ::close(ready[0]);
  }
  ~Holder() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  Pid pid() const { return Pid(pid_); }

 private:
  pid_t pid_;
};

const wire::Check::Privilege* find(const wire::Check& check, Privilege::Kind kind) {
  const auto it =
      std::ranges::find_if(check.privileges(), [&](const auto& p) { return p.kind() == static_cast<uint32_t>(kind); });
  return it == check.privileges().end() ? nullptr : &*it;
}

TEST_F(EarlyChecks, TheSourceTellsWhoHasWhatAndWhatRootGave) {
  constexpr int kSize = 256 << 10;
  const Holder holder([this] {
    const int secret = ::open(at("home/private").c_str(), O_RDWR | O_CREAT, 0600);
    const int deleted = ::open(at("home/deleted").c_str(), O_RDWR | O_CREAT, 0600);
    ::unlink(at("home/deleted").c_str());
    const int marked = ::socket(AF_INET, SOCK_DGRAM, 0), mark = 7;
    int ends[2];
    if (secret < 0 || deleted < 0 || ::setsockopt(marked, SOL_SOCKET, SO_MARK, &mark, sizeof mark) != 0 ||
        ::pipe(ends) != 0 || ::mkfifo(at("home/fifo").c_str(), 0600) != 0 ||
        ::fcntl(::open(at("home/fifo").c_str(), O_RDWR), F_SETPIPE_SZ, kSize) != kSize ||
        ::syscall(SYS_setresgid, kUser, kUser, kUser) != 0 || ::syscall(SYS_setgroups, 0, nullptr) != 0 ||
        ::syscall(SYS_setresuid, kUser, kUser, kUser) != 0)
      ::_exit(1);
  });
  const Inventory inventory = take_inventory(holder.pid(), InventoryDepth::whole);
  const wire::Check& told = inventory.check;
  const auto file = std::ranges::find_if(told.files(), [&](const auto& f) { return f.path() == at("home/private"); });
  ASSERT_NE(file, told.files().end());
  ASSERT_EQ(file->uses_size(), 1);
  EXPECT_EQ(file->uses(0).flags(), static_cast<uint32_t>(O_RDWR));
  ASSERT_EQ(file->uses(0).holders_size(), 1);
  const auto& who = told.credentials(static_cast<int>(file->uses(0).holders(0)));
  EXPECT_EQ(who.uid(), kUser);
  EXPECT_EQ(who.groups_size(), 0);
  EXPECT_EQ(who.capabilities(), 0u);
  const auto deleted = std::ranges::find_if(told.made(), [&](const auto& f) { return f.path() == at("home/deleted"); });
  ASSERT_NE(deleted, told.made().end());
  ASSERT_NE(find(told, Privilege::Kind::mark), nullptr);
  EXPECT_EQ(find(told, Privilege::Kind::mark)->value(), 7u);
  EXPECT_EQ(find(told, Privilege::Kind::mark)->held(), 0u);
  std::set<uint64_t> sizes;
  for (const auto& p : told.privileges())
    if (p.kind() == static_cast<uint32_t>(Privilege::Kind::pipe_size)) sizes.insert(p.value());
  EXPECT_TRUE(sizes.contains(kSize)) << "of a FIFO";
  EXPECT_EQ(find(told, Privilege::Kind::root_folder), nullptr);
  // Nothing of it is news.
  const Inventory news = take_inventory(holder.pid(), InventoryDepth::whole, &inventory);
  EXPECT_EQ(news.check.files_size(), 0) << news.check.files(0).path();
  EXPECT_EQ(news.check.made_size(), 0);
  EXPECT_EQ(news.check.privileges_size(), 0);
  ASSERT_EQ(told.kernel_mappings_size(), 1);
  EXPECT_EQ(news.check.kernel_mappings_size(), 0);
  // The destination decides by it.
  check_ = told;
  check_.clear_memory();
  const std::vector<std::string> reasons = answer();
  EXPECT_TRUE(std::ranges::any_of(reasons, [](const std::string& r) {
    return r.find("home/private, which user 65534 may not use here") != r.npos;
  })) << (reasons.empty() ? "nothing is in the way" : reasons.front());
}

TEST_F(EarlyChecks, AVdsoOfAnotherKernelIsRefused) {
  const Holder holder([this] {
    const int file = ::open(at("home/a [vdso]").c_str(), O_RDWR | O_CREAT, 0600);
    if (::ftruncate(file, 4096) != 0 || ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED)
      ::_exit(1);
  });
  check_ = take_inventory(holder.pid(), InventoryDepth::whole).check;
  check_.clear_memory();
  check_.clear_files();  // nobody shows that the other is the same
  taken();
  wire::Check::KernelMappings& told = *check_.mutable_kernel_mappings(0);
  const wire::Check::KernelMappings good = told;
  ASSERT_GE(told.ends_size(), 4);
  const auto differs = [&] { refused("the vdso of task " + std::to_string(holder.pid().get()) + " is laid out"); };
  told.set_ends(told.ends_size() - 1, told.ends(told.ends_size() - 1) + 4096);
  differs();
  told.set_ends(told.ends_size() - 2, told.ends(told.ends_size() - 2) + 4096);
  differs();
  told = good;
  told.mutable_ends()->Truncate(told.ends_size() - 2);
  differs();
}

TEST_F(EarlyChecks, AsManyStrangersAreToldAsAMessageTakes) {
  const Holder holder([] {
    for (int i = 0; i < 40; ++i)
      if (int ends[2]; ::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) ::_exit(1);
    if (::syscall(SYS_setresgid, kUser, kUser, kUser) != 0 || ::syscall(SYS_setgroups, 0, nullptr) != 0 ||
        ::syscall(SYS_setresuid, kUser, kUser, kUser) != 0)
      ::_exit(1);
  });
  check_ = take_inventory(holder.pid(), InventoryDepth::whole).check;
  check_.clear_memory();
  check_.clear_files();
  EXPECT_EQ(check_.strangers_size(), 50);
  taken();
  EXPECT_GE(answer(true).size(), 50u);
}

TEST_F(EarlyChecks, WhatCannotBeSeenIsNotTakenForClosed) {
  const Holder holder([] {
    if (::socket(AF_INET, SOCK_DGRAM, 0) < 0) ::_exit(1);
  });
  const auto without = [&](int err) {
    return in_child([&] {
      let_fail(SYS_pidfd_getfd, static_cast<unsigned>(err));
      try {
        take_inventory(holder.pid(), InventoryDepth::whole);
      } catch (const Error& e) {
        return e.code() == err ? 1 : 2;
      }
      return 0;
    });
  };
  EXPECT_EQ(without(EMFILE), 1);
  EXPECT_EQ(without(EBADF), 0);
}

TEST_F(EarlyChecks, CredentialsAreThoseOfTheFileSystem) {
  const FileCredentials c = credentials_in_status(
      "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t30 10 20 "
      "\nCapPrm:\tff\nCapEff:\t0000000000000a01\n");
  EXPECT_EQ(c, (FileCredentials{4, 8, {10, 20, 30}, 0xa01}));
  EXPECT_EQ(
      credentials_in_status("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\nCapEff:\t0\n").groups.size(), 0u);
  EXPECT_THROW(credentials_in_status("Name:\tx\nUid:\t1\t2\t3\n"), Corrupt);
}

}  // namespace
}  // namespace migrate

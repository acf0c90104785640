// What a sender learns of files by asking, where it may only bring the programs of user 65534; and that an honest one
// is told the truth.
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "core/files/file_credentials.h"
#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/wire/content_hash.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

constexpr uid_t kUser = 65534;

class FileChecksTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_EQ(::chmod(dir.path().c_str(), 0755), 0);
    options.allow_uids = {kUser};
    std::filesystem::create_directory(at("private"));
    ASSERT_EQ(::chmod(at("private").c_str(), 0700), 0);
  }
  std::string at(const std::string& name) const { return dir.path() + "/" + name; }
  void file(const std::string& name, const std::string& text, uid_t owner, mode_t mode) {
    const Fd fd = open_path(at(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    write_full(fd.get(), as_bytes_of(text), name);
    ASSERT_EQ(::fchown(fd.get(), owner, owner), 0);
    ASSERT_EQ(::fchmod(fd.get(), mode), 0);
  }
  wire::Check::File asked(const std::string& name) const {
    wire::Check::File f;
    f.set_path(at(name));
    f.set_type(S_IFREG);
    struct stat st {};
    if (::stat(at(name).c_str(), &st) == 0) f.set_inode(st.st_ino);
    return f;
  }
  /// "" if nothing is in the way. The names are left out.
  std::string answer(const wire::Check::File& file) const {
    wire::Check check;
    check.add_uids(options.allow_uids.empty() ? 0 : kUser);
    check.add_gids(kUser);
    *check.add_files() = file;
    ReceiveOptions with_group = options;
    with_group.allow_gids = {{kUser}};
    const auto reasons = what_is_in_the_way(check, with_group).reasons;
    EXPECT_EQ(own_credentials().uid, 0u);
    if (reasons.empty()) return {};
    return reasons.front().substr(reasons.front().find(file.path()) + file.path().size());
  }
  std::string guess(const std::string& name, const std::string& text) {
    const std::string mine = at("guess");
    file("guess", text, 0, 0600);
    wire::Check::File f = asked(name);
    f.set_mapped(true);
    f.set_size(text.size());
    f.set_content(content_hash(mine));
    return answer(f);
  }

  TempDir dir;
  ReceiveOptions options;
};

TEST_F(FileChecksTest, ContentIsToldToWhoMayReadIt) {
  file("secret", "12345", 0, 0600);
  file("shared", "12345", 0, 0644);
  file("own", "12345", kUser, 0600);
  for (const char* name : {"shared", "own"}) {
    EXPECT_EQ(guess(name, "12345"), "") << name;
    EXPECT_NE(guess(name, "54321").find("has another content"), std::string::npos) << name;
  }
  EXPECT_EQ(guess("secret", "12345"), guess("secret", "54321"));
  EXPECT_NE(guess("secret", "12345").find("user 65534 may not use here: Permission denied"), std::string::npos);
  options.allow_uids.clear();
  EXPECT_EQ(guess("secret", "12345"), "");
  EXPECT_NE(guess("secret", "54321").find("has another content"), std::string::npos);
}

TEST_F(FileChecksTest, WhatIsInPrivateFoldersIsNotTold) {
  file("private/there", "12345", 0, 0644);
  wire::Check::File folder = asked("private/there");
  folder.set_type(S_IFDIR);
  const std::string why = answer(asked("private/there"));
  EXPECT_NE(why.find("Permission denied"), std::string::npos) << why;
  EXPECT_EQ(why, answer(asked("private/missing")));
  EXPECT_EQ(why, answer(folder));
  // By a link, too.
  std::filesystem::create_symlink(at("private/there"), at("link"));
  EXPECT_NE(answer(asked("link")).find("Permission denied"), std::string::npos);
  EXPECT_NE(answer(asked("missing")).find("does not exist"), std::string::npos);
}

TEST_F(FileChecksTest, ProbesAndLocksOfOthersAreNotTold) {
  file("own", "12345", kUser, 0600);
  file("secret", "token", 0, 0600);
  const auto probed = [&](const std::string& probe, const std::string& content) {
    wire::Check::File f = asked("own");
    f.set_writable(true);
    f.set_probe_path(at(probe));
    f.set_probe_content(content);
    return answer(f);
  };
  EXPECT_EQ(probed("secret", "token"), probed("secret", "guess"));
  EXPECT_NE(probed("secret", "token"), "");
  file("probe", "token", 0, 0644);
  EXPECT_EQ(probed("probe", "token"), "");
  EXPECT_NE(probed("probe", "guess"), "");
  const auto locked = [&](const std::string& name) {
    wire::Check::File f = asked(name);
    f.add_locks()->set_kind(2);
    f.mutable_locks(0)->set_type(F_WRLCK);
    return answer(f);
  };
  EXPECT_EQ(locked("own"), "");
  const std::string before = locked("secret");
  const Fd holder = open_path(at("secret"), O_RDWR), other = open_path(at("own"), O_RDWR);
  ASSERT_EQ(::flock(holder.get(), LOCK_EX) | ::flock(other.get(), LOCK_EX), 0);
  EXPECT_EQ(locked("secret"), before);
  EXPECT_NE(locked("own").find("is locked by the program"), std::string::npos);
  // Of a file that both hosts see it is the program's own.
  wire::Check::File shared = asked("own");
  shared.add_locks()->set_kind(2);
  shared.mutable_locks(0)->set_type(F_WRLCK);
  shared.set_probe_path(at("probe"));
  shared.set_probe_content("token");
  EXPECT_EQ(answer(shared), "");
  shared.set_probe_content("guess");
  EXPECT_NE(answer(shared), "");
  shared.set_shared(true);
  EXPECT_EQ(answer(shared), "");
}

TEST_F(FileChecksTest, NothingElseIsOpened) {
  ASSERT_EQ(::mkfifo(at("fifo").c_str(), 0666), 0);
  wire::Check::File fifo = asked("fifo");
  fifo.set_mapped(true);
  fifo.set_content(1);
  EXPECT_NE(answer(fifo).find("is a regular file at the source and a FIFO"), std::string::npos);
  fifo.set_type(S_IFIFO);
  EXPECT_EQ(answer(fifo), "");
  // A read of it would wait for news of the kernel's.
  for (const bool bounded : {true, false}) {
    options.allow_uids.assign(bounded ? 1 : 0, kUser);
    wire::Check::File kernel;
    kernel.set_path("/proc/kmsg");
    kernel.set_type(S_IFREG);
    kernel.set_mapped(true);
    kernel.set_content(1);
    EXPECT_EQ(answer(kernel), "");
  }
}

TEST_F(FileChecksTest, FilesThatTheUserMayNotWriteAreSaidEarly) {
  file("log", "", 0, 0644);
  wire::Check::File f = asked("log");
  f.set_writable(true);
  EXPECT_NE(answer(f).find("it may not write to it"), std::string::npos);
  file("log", "", kUser, 0644);
  EXPECT_EQ(answer(f), "");
}

}  // namespace
}  // namespace migrate

// Regular files, folders and devices.
#include "files_testing.h"

#include <sys/file.h>
#include <sys/mman.h>

#include <map>

#include "images/file-lock.pb.h"

namespace migrate::files_testing {
namespace {

TEST_F(Files, RegularFilesKeepOffsetFlagsAndSharing) {
  const auto images = dump([&] {
    place_at(::open(at("a").c_str(), O_RDWR | O_CREAT, 0644), 5);
    say(5, "hello world");
    ::lseek(5, 6, SEEK_SET);
    MUST(::dup3(5, 7, O_CLOEXEC) == 7);
    place_at(::open(at("a").c_str(), O_WRONLY | O_APPEND | O_NONBLOCK), 20);
    place_at(::open(at("").c_str(), O_RDONLY | O_DIRECTORY), 21);
    place_at(::open("/dev/null", O_WRONLY), 22);
    place_at(::open("/dev/urandom", O_RDONLY), 23);
    place_at(::open(at("a").c_str(), O_PATH), 24);
  });
  restore(images, [&] {
    MUST(::fcntl(5, F_GETFD) == 0);
    MUST(::fcntl(7, F_GETFD) == FD_CLOEXEC);
    MUST(::lseek(5, 0, SEEK_CUR) == 6);
    MUST(read_some(7) == "world");
    MUST(::lseek(5, 0, SEEK_CUR) == 11);
    MUST((::fcntl(20, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == (O_WRONLY | O_APPEND | O_NONBLOCK));
    MUST((::fcntl(5, F_GETFL) & O_NONBLOCK) == 0);
    say(20, "!");
    MUST(link_of(21) + "/" == at(""));
    MUST(link_of(22) == "/dev/null");
    MUST(read_some(23).size() > 100);
    MUST((::fcntl(24, F_GETFL) & O_PATH) != 0);
    MUST(::fcntl(6, F_GETFD) == -1);
  });
  EXPECT_EQ(read_file_at(AT_FDCWD, at("a")), "hello world!");
}

TEST_F(Files, DeletedFilesBecomeGhosts) {
  const auto images = dump([&] {
    place_at(::open(at("gone (deleted)").c_str(), O_RDWR | O_CREAT, 0640), 3);
    say(3, "ghost");
    place_at(::open(at("gone (deleted)").c_str(), O_RDONLY), 4);
    ::unlink(at("gone (deleted)").c_str());
    place_at(::open(at("sparse").c_str(), O_RDWR | O_CREAT, 0600), 5);
    MUST(::pwrite(5, "end", 3, 50 << 20) == 3);
    ::unlink(at("sparse").c_str());
    place_at(::open(at("real (deleted)").c_str(), O_RDWR | O_CREAT, 0600), 6);
  });
  std::filesystem::create_directory(at("gone (deleted)"));  // the name is taken
  restore(images, [&] {
    MUST(read_some(4) == "ghost");
    say(3, "s");
    MUST(read_some(4) == "s");
    struct stat st {};
    MUST(::fstat(3, &st) == 0 && st.st_nlink == 0 && (st.st_mode & 07777) == 0640);
    char end[4] = {};
    MUST(::pread(5, end, 3, 50 << 20) == 3 && std::string(end) == "end");
    MUST(::fstat(5, &st) == 0 && st.st_size == (50 << 20) + 3 && st.st_blocks < 1000);
    MUST(link_of(6) == at("real (deleted)"));
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 2);
  refused(
      [&] {
        place_at(::open(at("big").c_str(), O_RDWR | O_CREAT, 0600), 3);
        say(3, std::string(2 << 20, 'x'));
        ::unlink(at("big").c_str());
      },
      "raise --ghost-limit");
}

TEST_F(Files, RemovedNamesOfLivingFilesNeedLinkRemap) {
  const Work setup = [&] {
    place_at(::open(at("one").c_str(), O_RDWR | O_CREAT, 0600), 3);
    say(3, "linked");
    ::mkdir(at("below").c_str(), 0700);
    ::link(at("one").c_str(), at("below/two").c_str());
    ::unlink(at("one").c_str());
  };
  refused(setup, "--link-remap");
  std::filesystem::remove(at("below/two"));
  const auto images = dump(setup, {{.link_remap = true}});
  restore(images, [&] {
    char text[7] = {};
    MUST(::pread(3, text, 6, 0) == 6 && std::string(text) == "linked");
    MUST(link_of(3) == at("one") + " (deleted)");
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
}

TEST_F(Files, AnotherNameInTheSameFolderIsFound) {
  const auto images = dump([&] {
    place_at(::open(at("one").c_str(), O_RDWR | O_CREAT, 0600), 3);
    say(3, "linked");
    ::link(at("one").c_str(), at("two").c_str());
    ::unlink(at("one").c_str());
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
  restore(images, [&] {
    struct stat st {};
    MUST(::fstat(3, &st) == 0 && st.st_nlink == 1);
    MUST(link_of(3) == at("one") + " (deleted)");
  });
  EXPECT_TRUE(std::filesystem::exists(at("two")));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);
}

TEST_F(Files, TerminalsNeedShellJob) {
  const Fd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!master) GTEST_SKIP() << "needs a devpts mount";
  ASSERT_EQ(::grantpt(master.get()), 0);
  ASSERT_EQ(::unlockpt(master.get()), 0);
  const std::string name = ::ptsname(master.get());
  const Work setup = [&] { place_at(::open(name.c_str(), O_RDWR | O_NOCTTY), 0); };
  refused(setup, "--shell-job");
  const auto images = dump(setup, {{.shell_job = true}});
  refused(setup, "stays where it is", {{.shell_job = true}, false});
  // The number of the source is somebody else's here.
  EXPECT_THROW(FileRestorer(images, {}, *log).open_all(), Refusal);
  const Fd other_master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_EQ(::unlockpt(other_master.get()), 0);
  const Fd own = open_path(::ptsname(other_master.get()), O_RDWR | O_NOCTTY);
  FileRestorer restorer(images, {.terminal = own.get()}, *log);
  restorer.open_all();
  ASSERT_EQ(restorer.opened().size(), 1U);
  EXPECT_EQ(link_of(restorer.opened().begin()->second), link_of(own.get()));
}

TEST_F(Files, TwoTerminalsAreNotMadeOne) {
  const Fd masters[] = {Fd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)),
                        Fd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC))};
  if (!masters[1]) GTEST_SKIP() << "needs a devpts mount";
  std::vector<std::string> names;
  for (const Fd& master : masters) {
    ASSERT_EQ(::unlockpt(master.get()), 0);
    names.emplace_back(::ptsname(master.get()));
  }
  const auto open_both = [&](const std::string& second) {
    return [&names, second] {
      place_at(::open(names[0].c_str(), O_RDWR | O_NOCTTY), 0);
      place_at(::open(second.c_str(), O_RDWR | O_NOCTTY), 1);
    };
  };
  EXPECT_NO_THROW(check_files_restorable(dump(open_both(names[0]), {{.shell_job = true}}), 1024));
  EXPECT_THROW(check_files_restorable(dump(open_both(names[1]), {{.shell_job = true}}), 1024), Refusal);
}

TEST_F(Files, FlagsThatOnlyAnOpenGives) {
  const auto remember = [&] {
    std::string text;
    for (int fd = 3; fd < 10; ++fd) text += std::to_string(::fcntl(fd, F_GETFL)) + " ";
    return text;
  };
  std::filesystem::create_directory(at("gone"));
  const auto images = dump([&] {
    ::close(::open(at("f").c_str(), O_CREAT | O_WRONLY, 0600));
    place_at(::open(at("f").c_str(), O_PATH), 3);
    place_at(::open(at("").c_str(), O_TMPFILE | O_RDWR | O_EXCL | O_NOFOLLOW, 0600), 4);
    say(4, "nameless");
    place_at(::open("/proc/self/fd/4", O_RDONLY), 5);
    place_at(::open(at("gone/x").c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_APPEND, 0600), 6);
    say(6, "folderless");
    place_at(::open(at("named").c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW, 0600), 7);
    int p[2];
    MUST(::pipe(p) == 0);
    place_at(p[1], 9);
    place_at(p[0], 8);
    place_at(::open(at("flags").c_str(), O_WRONLY | O_CREAT, 0600), 20);
    const std::string text = remember();
    MUST(::write(20, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    ::unlink(at("gone/x").c_str());
    ::rmdir(at("gone").c_str());
  });
  restore(images, [&] {
    MUST(remember() == read_file_at(AT_FDCWD, at("flags")));
    MUST(read_some(5) == "nameless");
    MUST(::lseek(4, 0, SEEK_CUR) == 8);
    char text[11] = {};
    MUST(::pread(6, text, 10, 0) == 10 && std::string(text) == "folderless");
    MUST(::access(at("gone").c_str(), F_OK) != 0);
  });
}

TEST_F(Files, LocksAreDumpedOnceEachWhenAsked) {
  const Work setup = [&] {
    place_at(::open(at("locked").c_str(), O_RDWR | O_CREAT, 0600), 5);
    MUST(::dup2(5, 6) == 6);
    place_at(::open(at("flocked").c_str(), O_RDONLY | O_CREAT, 0600), 7);
    struct flock range {
      .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5, .l_pid = 0
    };
    MUST(::fcntl(5, F_SETLK, &range) == 0);
    range = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 0, .l_pid = 0};
    MUST(::fcntl(5, F_OFD_SETLK, &range) == 0);
    MUST(::flock(7, LOCK_SH) == 0);
  };
  refused(setup, "--file-locks");
  const auto images = dump(setup, {{.file_locks = true}});
  auto reader = images.read("filelocks.img", magic::kFileLocks);
  ASSERT_TRUE(reader);
  std::map<uint32_t, img::file_lock_entry> locks;
  size_t count = 0;
  for (img::file_lock_entry e; reader->next(e); ++count) locks[e.flag()] = e;
  EXPECT_EQ(count, 3u);
  const auto expect = [&](uint32_t kind, std::array<int64_t, 4> wanted) {
    const img::file_lock_entry& e = locks[kind];
    EXPECT_EQ((std::array<int64_t, 4>{e.type(), e.fd(), e.start(), e.len()}), wanted) << kind;
  };
  expect(1, {F_WRLCK, 5, 10, 5});
  expect(1024, {F_RDLCK, 5, 100, 0});
  expect(2, {F_RDLCK, 7, 0, 0});
  const Work lease = [&] {
    place_at(::open(at("leased").c_str(), O_RDWR | O_CREAT, 0600), 5);
    MUST(::fcntl(5, F_SETLEASE, F_WRLCK) == 0);
  };
  refused(lease, "a lease", {{.file_locks = true}});
}

}  // namespace
}  // namespace migrate::files_testing

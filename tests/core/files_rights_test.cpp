// By whose right files are opened and made: user 65534's, for whom hostile links, folders and files were planted, and
// honest counterparts of each.
#include "early_looks.h"
#include "files_testing.h"

#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "core/files/task_paths.h"

namespace migrate::files_testing {
namespace {

constexpr uid_t kOther = 1234;

class FileRights : public Files {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    Files::SetUp();
    folder("home", kUser, 0755);
    folder("log", 0, 0755);
    folder("secret", 0, 0700);
  }
  void folder(const std::string& name, uid_t owner, mode_t mode) {
    std::filesystem::create_directories(at(name));
    own(name, owner, mode);
  }
  void own(const std::string& name, uid_t owner, mode_t mode) {
    ASSERT_EQ(::chown(at(name).c_str(), owner, owner), 0);
    ASSERT_EQ(::chmod(at(name).c_str(), mode), 0);
  }
  void file(const std::string& name, const std::string& text, uid_t owner, mode_t mode) {
    const Fd fd(::open(at(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600));
    ASSERT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    own(name, owner, mode);
  }
  void link(const std::string& name, const std::string& to, uid_t owner) {
    std::filesystem::create_symlink(to.starts_with('/') ? to : at(to), at(name));
    ASSERT_EQ(::lchown(at(name).c_str(), owner, owner), 0);
  }
  /// Dumped as root; whose it is say the holders at the restore.
  ImageSet dump_open(const std::string& name, int flags) {
    return dump([&] { place_at(::open(at(name).c_str(), flags), 3); });
  }
  /// Moves the folder away, and puts a link in its place.
  void replace_by_link(const std::string& name, const std::string& to, uid_t owner) {
    std::filesystem::rename(at(name), at(name + ".old"));
    link(name, to, owner);
  }

  static FileCredentials user(std::vector<uint32_t> groups = {}) { return {kUser, kUser, std::move(groups), 0}; }
  static FileRestoreOptions options(const Holders& holders, bool by_root = true) {
    FileRestoreOptions o;
    o.holders.emplace();
    (*o.holders)[1] = holders;
    o.by_root = by_root;
    return o;
  }
  static void expect_early(const ImageSet& images, const FileRestoreOptions& how, bool refused) {
    const auto why = early_look(images, how);
    EXPECT_EQ(why.has_value(), refused) << why.value_or("nothing is in the way, it says before the move");
    if (why) {
      EXPECT_NE(why->find("; "), why->npos) << "not said what to do: " << *why;
    }
    expect_root();
  }
  /// What descriptor 3 leads to: the descriptor's only file.
  std::string restored(const ImageSet& images, const FileRestoreOptions& how) {
    expect_early(images, how, false);
    return opened(images, how);
  }
  std::string opened(const ImageSet& images, const FileRestoreOptions& how) {
    FileRestorer restorer(images, how, *log);
    restorer.open_all();
    EXPECT_EQ(restorer.opened().size(), 1u);
    return link_of(restorer.opened().begin()->second);
  }
  void denied(const ImageSet& images, const FileRestoreOptions& how, const std::string& part,
              bool known_before = true) {
    if (known_before) expect_early(images, how, true);
    try {
      const std::string got = opened(images, how);
      ADD_FAILURE() << "not refused (" << part << "): it got " << got;
    } catch (const Refusal& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
    expect_root();
  }
  /// Nothing of the task's rights stays with us.
  static void expect_root() { EXPECT_EQ(own_credentials().uid, 0u); }
  Fd found(const ImageSet& images, WantedFile::Use use, const Holders& holders, bool by_root = true) {
    auto reader = images.read("files.img", magic::kFiles);
    img::file_entry entry;
    if (!reader || !reader->next(entry)) throw std::runtime_error("no file was dumped");
    const auto why = early_look(entry.reg(), use, holders, by_root);
    FileRestorer restorer(images, options(holders, by_root), *log);
    try {
      Fd found = std::move(restorer.open_files({{entry.id(), O_RDONLY, use, holders}}).front());
      EXPECT_FALSE(why) << *why;
      return found;
    } catch (const Refusal&) {
      EXPECT_TRUE(why) << "nothing is in the way, it says before the move";
      throw;
    }
  }
  size_t entries(const std::string& name) const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(at(name)), {}));
  }
};

TEST_F(FileRights, ALinkOfTheUsersOpensWhatTheUserMayOpen) {
  folder("home/data", kUser, 0755);
  file("home/data/f", "12345", kUser, 0600);
  file("secret/f", "54321", 0, 0600);
  const auto images = dump_open("home/data/f", O_RDONLY);
  EXPECT_EQ(restored(images, options({user()})), at("home/data/f"));
  replace_by_link("home/data", "secret", kUser);
  denied(images, options({user()}), "Permission denied");
  std::filesystem::remove(at("home/data"));
  link("home/data", "home/data.old", kUser);
  EXPECT_EQ(restored(images, options({user()})), at("home/data.old/f"));
  std::filesystem::remove(at("home/data"));
  link("home/data", "home/data.old", kOther);
  denied(images, options({user()}), "a link that user 1234 can change");
}

// Somebody else in its jail put the link there: for a task without a root folder of its own it would be the user's.
TEST_F(FileRights, NoLinkLeadsOutOfATasksOwnRootFolder) {
  folder("jail", 0, 0755);
  folder("jail/home", kUser, 0755);
  folder("jail/home/data", kUser, 0755);
  file("jail/home/data/f", "12345", kUser, 0600);
  folder("outside", kUser, 0755);
  file("outside/f", "54321", kUser, 0600);
  const auto images = dump_open("jail/home/data/f", O_RDONLY);
  FileCredentials jailed = user();
  jailed.root = at("jail");
  EXPECT_EQ(opened(images, options({jailed})), at("jail/home/data/f"));
  replace_by_link("jail/home/data", "outside", kUser);
  denied(images, options({jailed}), "a link in a root folder that a task has of its own", false);
  denied(images, options({user(), jailed}), "a link in a root folder that a task has of its own", false);
  EXPECT_EQ(opened(images, options({user()})), at("outside/f"));
  // Links on the way to it are none of the jail's.
  std::filesystem::remove(at("jail/home/data"));
  std::filesystem::rename(at("jail/home/data.old"), at("jail/home/data"));
  replace_by_link("jail", "jail.old", 0);
  EXPECT_EQ(opened(images, options({jailed})), at("jail.old/home/data/f"));
}

TEST_F(FileRights, RootsProgramsFollowNoLinksOfOthers) {
  folder("home/data", kUser, 0755);
  file("home/data/f", "12345", 0, 0600);
  file("secret/f", "54321", 0, 0600);
  const auto images = dump_open("home/data/f", O_RDWR);
  const FileRestoreOptions root = options({own_credentials()});
  replace_by_link("home/data", "secret", kUser);
  denied(images, root, "a link that user 65534 can change");
  std::filesystem::remove(at("home/data"));
  link("home/data", "home/data.old", 0);
  EXPECT_EQ(restored(images, root), at("home/data.old/f"));
}

TEST_F(FileRights, FilesOfTheKernelsAreNotGiven) {
  folder("home/data", kUser, 0755);
  file("home/data/mem", "", kUser, 0600);
  const auto images = dump_open("home/data/mem", O_RDWR);
  replace_by_link("home/data", "/proc/" + std::to_string(::getpid()), kUser);
  denied(images, options({user()}), "a file of the kernel's");
  EXPECT_EQ(restored(dump([] { place_at(::open("/proc/uptime", O_RDONLY), 3); }), options({user()})), "/proc/uptime");
}

TEST_F(FileRights, WorkersKeepWhatRootOpenedForThemInRootsFolders) {
  file("log/access.log", "line\n", 0, 0640);
  const auto images = dump_open("log/access.log", O_WRONLY | O_APPEND);
  const std::string path = at("log/access.log");
  EXPECT_EQ(restored(images, options({user()})), path);
  denied(images, options({user()}, false), "user 65534 may not use here: Permission denied");
  own("log", 0, 0777);
  denied(images, options({user()}), "can be changed by others than root");
  own("log", kUser, 0755);
  denied(images, options({user()}), "can be changed by others than root");
  own("log", 0, 0755);
  own("log/access.log", 0, 0600);
  denied(images, options({user()}), "its mode is not what it was");
  own("log/access.log", kOther, 0640);
  denied(images, options({user()}), "its owner is not who it was");
  own("log/access.log", 0, 0640);
  replace_by_link("log", "log.old", 0);
  EXPECT_EQ(restored(images, options({user()})), at("log.old/access.log"));
  const auto reading = dump_open("log/access.log", O_RDONLY);
  file("log/access.log", "another line\n", 0, 0640);
  expect_early(reading, options({user()}), true);
  EXPECT_THROW(opened(reading, options({user()})), Error);
  EXPECT_EQ(restored(images, options({user()})), at("log.old/access.log"));
}

TEST_F(FileRights, AnyTaskThatHoldsADescriptionMayOpenIt) {
  file("home/a", "x", kOther, 0600);
  const auto images = dump_open("home/a", O_RDWR);
  denied(images, options({user()}), "Permission denied");
  EXPECT_EQ(restored(images, options({user(), {kOther, kOther, {}, 0}})), at("home/a"));
}

TEST_F(FileRights, GroupsAndCapabilitiesCount) {
  file("home/a", "x", kOther, 0640);
  const auto images = dump_open("home/a", O_RDONLY);
  denied(images, options({user()}), "Permission denied");
  EXPECT_EQ(restored(images, options({user({kOther})})), at("home/a"));
  EXPECT_EQ(restored(images, options({{kUser, kUser, {}, uint64_t{1} << CAP_DAC_READ_SEARCH}})), at("home/a"));
  denied(images, options({{0, 0, {}, 0}}), "user 0 may not");
}

TEST_F(FileRights, RightsComeBackWithAllThatHangsOnThem) {
  ASSERT_EQ(::prctl(PR_SET_PDEATHSIG, SIGUSR2), 0);
  const FileCredentials before = own_credentials();
  {
    ActingAs acting;
    acting.become(user({7, 8}));
    EXPECT_EQ(own_credentials(), user({7, 8}));
    int signal = 0;
    ::prctl(PR_GET_PDEATHSIG, &signal);
    EXPECT_EQ(signal, SIGUSR2);
    acting.become({kOther, kOther, {}, uint64_t{1} << CAP_CHOWN});
    EXPECT_EQ(own_credentials(), (FileCredentials{kOther, kOther, {}, uint64_t{1} << CAP_CHOWN}));
  }
  EXPECT_EQ(own_credentials(), before);
  EXPECT_EQ(::prctl(PR_GET_DUMPABLE), 1);
  int signal = 0;
  ::prctl(PR_GET_PDEATHSIG, &signal);
  EXPECT_EQ(signal, SIGUSR2);
  ::prctl(PR_SET_PDEATHSIG, 0);
}

TEST_F(FileRights, WhoNeedsNoParentAnyMoreDoesNotDieWithItAfterAll) {
  ASSERT_EQ(::prctl(PR_SET_PDEATHSIG, SIGUSR2), 0);
  ActingAs acting;
  int signal = -1;
  acting.become(user());
  ::prctl(PR_SET_PDEATHSIG, 0);  // as the init of a received tree does: the tree must outlive whoever received it
  acting.be_self();
  ::prctl(PR_GET_PDEATHSIG, &signal);
  EXPECT_EQ(signal, 0);
  acting.become(user());
  ::prctl(PR_GET_PDEATHSIG, &signal);
  EXPECT_EQ(signal, 0);
}

TEST_F(FileRights, DeletedFilesAreMadeByTheirUsers) {
  const auto ghost = [&](const std::string& name, uid_t owner, mode_t mode) {
    return dump([&] {
      place_at(::open(at(name).c_str(), O_RDWR | O_CREAT, 0600), 3);
      say(3, "ghost");
      MUST(::fchown(3, owner, owner) == 0 && ::fchmod(3, mode) == 0);
      ::unlink(at(name).c_str());
    });
  };
  const auto made = [&](const ImageSet& images, const FileRestoreOptions& how, uid_t owner, mode_t mode) {
    expect_early(images, how, false);
    FileRestorer restorer(images, how, *log);
    restorer.open_all();
    struct stat st {};
    ASSERT_EQ(::fstat(restorer.opened().begin()->second, &st), 0);
    EXPECT_EQ(st.st_uid, owner);
    EXPECT_EQ(st.st_mode & 07777, mode);
    EXPECT_EQ(st.st_nlink, 0u);
    EXPECT_EQ(st.st_size, 5);
    expect_root();
  };
  made(ghost("home/own", kUser, 0640), options({user()}, false), kUser, 0640);
  made(ghost("home/own-set-id", kUser, 04755), options({user()}, false), kUser, 04755);
  made(ghost("home/root's", 0, 0644), options({user()}), 0, 0644);
  denied(ghost("home/root's", 0, 0644), options({user()}, false), "not permitted");
  made(ghost("log/rotated", 0, 0640), options({user()}), 0, 0640);
  denied(ghost("log/rotated", 0, 0640), options({user()}, false), "Permission denied");
  folder("other", kOther, 0755);
  denied(ghost("other/x", 0, 0640), options({user()}), "can be changed by others");
  const auto set_id = ghost("home/shell", 0, 04755);
  EXPECT_THROW(FileRestorer(set_id, options({user()}), *log), Refusal) << "found before anything is made";
  denied(set_id, options({user()}), "with set-id bits (mode 4755)");
  denied(ghost("home/group", kUser, 0), options({{kOther, kOther, {}, 0}}), "Permission denied");
  made(set_id, options({user(), own_credentials()}), 0, 04755);
  EXPECT_EQ(entries("home"), 0u);
  EXPECT_EQ(entries("log"), 0u);
}

TEST_F(FileRights, MemfdsHaveNoSetIdBitsOfOthers) {
  const auto memfd = [&](uid_t owner) {
    return dump([&] {
      place_at(::memfd_create("m", 0), 3);
      MUST(::fchown(3, owner, owner) == 0 && ::fchmod(3, 06755) == 0);
    });
  };
  EXPECT_THROW(FileRestorer(memfd(0), options({user()}), *log), Refusal);
  FileRestorer(memfd(kUser), options({user()}), *log).open_all();
}

TEST_F(FileRights, FifosLikeFiles) {
  folder("home/data", kUser, 0755);
  ASSERT_EQ(::mkfifo(at("home/data/f").c_str(), 0600), 0);
  own("home/data/f", kUser, 0600);
  ASSERT_EQ(::mkfifo(at("secret/f").c_str(), 0600), 0);
  const auto images = dump([&] {
    place_at(::open(at("home/data/f").c_str(), O_RDWR | O_NONBLOCK), 3);
    say(3, "queued");
  });
  const auto read_back = [&] {
    expect_early(images, options({user()}), false);
    FileRestorer restorer(images, options({user()}), *log);
    restorer.open_all();
    return read_some(restorer.opened().begin()->second);
  };
  EXPECT_EQ(read_back(), "queued");
  replace_by_link("home/data", "secret", kUser);
  denied(images, options({user()}), "Permission denied");
  std::filesystem::remove(at("home/data"));
  link("home/data", "home/data.old", kUser);
  EXPECT_EQ(read_back(), "queued");
}

TEST_F(FileRights, FifosOfWhichOneDirectionIsAllowed) {
  ASSERT_EQ(::mkfifo(at("home/f").c_str(), 0600), 0);
  own("home/f", kOther, 0622);
  const auto writing = dump([&] {
    const Fd reader(::open(at("home/f").c_str(), O_RDWR | O_NONBLOCK));
    place_at(::open(at("home/f").c_str(), O_WRONLY | O_NONBLOCK), 3);
  });
  EXPECT_EQ(restored(writing, options({user()})), at("home/f"));
  own("home/f", kOther, 0644);
  denied(writing, options({user()}), "Permission denied");
}

TEST_F(FileRights, FoldersAreEnteredByTheirTasks) {
  using Use = WantedFile::Use;
  folder("home/a/work", kUser, 0700);
  folder("secret/work", kUser, 0700);
  const auto images = dump_open("home/a/work", O_RDONLY | O_DIRECTORY);
  EXPECT_TRUE(found(images, Use::work_folder, {user()}, false));
  replace_by_link("home/a", "secret", kUser);
  EXPECT_THROW(found(images, Use::work_folder, {user()}), Refusal);
  // A daemon that root started from its own folder.
  const auto roots = dump_open("secret", O_RDONLY | O_DIRECTORY);
  EXPECT_TRUE(found(roots, Use::work_folder, {user()}));
  EXPECT_THROW(found(roots, Use::work_folder, {user()}, false), Refusal);
  expect_root();
}

/// What a user holds that was root's when it was opened.
Work hold_removed(const std::string& path, const std::string& other) {
  return [=] {
    place_at(::open(path.c_str(), O_RDONLY), 3);
    MUST(::link(path.c_str(), other.c_str()) == 0 && ::unlink(path.c_str()) == 0);
    MUST(::setresgid(kUser, kUser, kUser) == 0 && ::setresuid(kUser, kUser, kUser) == 0);
  };
}

TEST_F(FileRights, NamesForRemovedFilesAreMadeByTheUsersRight) {
  folder("theirs", kOther, 0755);
  file("theirs/f", "12345", kUser, 0600);
  refused(hold_removed(at("theirs/f"), at("one")),
          "removed from " + at("theirs") + ", which user 65534 may not use here", {{.link_remap = true}});
  EXPECT_EQ(entries("theirs"), 0u);
  expect_root();
  // Its own folder, and root's.
  file("home/f", "12345", kUser, 0600);
  file("log/f", "12345", kUser, 0600);
  const auto users = dump(hold_removed(at("home/f"), at("two")), {{.link_remap = true}});
  const auto roots = dump(hold_removed(at("log/f"), at("three")), {{.link_remap = true}});
  for (const char* name : {"home", "log"}) EXPECT_EQ(entries(name), 1u) << name;
  for (const auto& [images, path] :
       {std::pair(&users, at("home/f (deleted)")), std::pair(&roots, at("log/link_remap."))}) {
    FileRestorer restorer(*images, options({user()}), *log);
    restorer.open_all();
    // A user cannot have it seen under its old name in root's folder.
    EXPECT_TRUE(link_of(restorer.opened().begin()->second).starts_with(path));
    EXPECT_EQ(restorer.after_gate(), std::vector<std::string>());
  }
  for (const char* name : {"home", "log"}) EXPECT_EQ(entries(name), 0u) << name;
}

TEST_F(FileRights, NamesForRemovedFilesGoWithADumpThatIsNotStored) {
  keep_links = false;
  file("home/f", "12345", kUser, 0600);
  // One that is taken is left alone.
  for (int id = 1; id < 5; ++id) file("home/link_remap." + std::to_string(id), "theirs", kUser, 0600);
  const auto images = dump(hold_removed(at("home/f"), at("two")), {{.link_remap = true}});
  EXPECT_TRUE(images.has("remap-fpath.img"));
  EXPECT_EQ(entries("home"), 4u);
}

TEST_F(FileRights, RootFoldersAreRootsToGive) {
  using Use = WantedFile::Use;
  folder("jail", 0, 0755);
  folder("home/jail", kUser, 0755);
  EXPECT_TRUE(found(dump_open("jail", O_RDONLY | O_DIRECTORY), Use::root_folder, {user()}));
  EXPECT_THROW(found(dump_open("jail", O_RDONLY | O_DIRECTORY), Use::root_folder, {user()}, false), Refusal);
  const auto images = dump_open("home/jail", O_RDONLY | O_DIRECTORY);
  EXPECT_THROW(found(images, Use::root_folder, {user()}), Refusal);
  const FileCredentials may{kUser, kUser, {}, uint64_t{1} << CAP_SYS_CHROOT};
  EXPECT_TRUE(found(images, Use::root_folder, {may}));
  EXPECT_TRUE(found(dump([] { place_at(::open("/", O_RDONLY | O_DIRECTORY), 3); }), Use::root_folder, {user()}, false));
}

TEST_F(FileRights, MappedFilesToo) {
  using Use = WantedFile::Use;
  folder("home/lib", kUser, 0755);
  file("home/lib/x.so", "12345", kUser, 0644);
  file("secret/x.so", "54321", 0, 0644);
  const auto images = dump_open("home/lib/x.so", O_RDONLY);
  EXPECT_TRUE(found(images, Use::mapped, {user()}, false));
  replace_by_link("home/lib", "secret", kUser);
  EXPECT_THROW(found(images, Use::mapped, {user()}), Refusal);
}

class UnixNameRights : public FileRights {
 protected:
  ImageSet listener(const std::string& path, uid_t owner) {
    ImageSet images = dump([&] {
      place_at(unix_at(path, SOCK_STREAM, false), 3);
      MUST(::listen(3, 1) == 0 && ::chown(path.c_str(), owner, owner) == 0 && ::chmod(path.c_str(), 0660) == 0);
    });
    std::filesystem::remove(path);
    return images;
  }
  /// Published, and gone again.
  void served(const ImageSet& images, const FileRestoreOptions& how, const std::string& path, uid_t owner) {
    expect_early(images, how, false);
    {
      FileRestorer restorer(images, how, *log);
      restorer.open_all();
      EXPECT_FALSE(std::filesystem::exists(path)) << "before the gate";
      EXPECT_EQ(restorer.after_gate(), std::vector<std::string>());
      EXPECT_GE(Fd(unix_at(path, SOCK_STREAM, true)).get(), 0);
    }
    struct stat st {};
    ASSERT_EQ(::stat(path.c_str(), &st), 0);
    EXPECT_EQ(st.st_uid, owner);
    EXPECT_EQ(st.st_mode & 07777, 0660u);
    std::filesystem::remove(path);
    EXPECT_TRUE(std::filesystem::is_empty(std::filesystem::path(path).parent_path())) << "something of ours is left";
  }
};

TEST_F(UnixNameRights, NamesAreMadeWhereTheUserMayMakeThem) {
  const auto images = listener(at("home/s"), kUser);
  served(images, options({user()}, false), at("home/s"), kUser);
  own("home", kOther, 0755);
  denied(images, options({user()}), "it may not make files in");
  own("home", 0, 0755);
  served(images, options({user()}), at("home/s"), kUser);
  denied(images, options({user()}, false), "it may not make files in");
  own("home", kOther, 01777);
  served(images, options({user()}, false), at("home/s"), kUser);
  const Fd stale(unix_at(at("home/s"), SOCK_STREAM, false));
  ::chown(at("home/s").c_str(), kUser, kUser);
  EXPECT_THROW(opened(images, options({user()}, false)), Error) << "it is in use";
}

TEST_F(UnixNameRights, FilesOfOthersAreNotReplaced) {
  const auto images = listener(at("home/s"), kUser);
  own("home", kOther, 01777);
  { const Fd gone(unix_at(at("home/s"), SOCK_STREAM, false)); }
  denied(images, options({user()}), "it may not replace the file of user 0");
  ::chown(at("home/s").c_str(), kUser, kUser);
  FileRestorer restorer(images, options({user()}), *log);
  restorer.open_all();
  EXPECT_LT(Fd(unix_at(at("home/s"), SOCK_STREAM, true)).get(), 0) << "published before the gate";
  EXPECT_EQ(restorer.after_gate(), std::vector<std::string>());
  EXPECT_GE(Fd(unix_at(at("home/s"), SOCK_STREAM, true)).get(), 0);
}

TEST_F(UnixNameRights, WhatWaitsIsOutOfReach) {
  const auto images = listener(at("home/s"), kUser);
  FileRestorer restorer(images, options({user()}), *log);
  restorer.open_all();
  const auto waiting = std::filesystem::directory_iterator(at("home"))->path();
  struct stat st {};
  ASSERT_EQ(::stat(waiting.c_str(), &st), 0);
  EXPECT_TRUE(S_ISDIR(st.st_mode) && st.st_uid == 0 && (st.st_mode & 0777) == 0700);
  // The user puts something else in its place: it is not what gets the name, its owner and its mode.
  std::filesystem::rename(waiting, at("home/elsewhere"));
  folder(std::filesystem::relative(waiting, dir), kUser, 0755);
  file(std::filesystem::relative(waiting / "s", dir), "mine", kUser, 0600);
  EXPECT_EQ(restorer.after_gate(), std::vector<std::string>());
  EXPECT_GE(Fd(unix_at(at("home/s"), SOCK_STREAM, true)).get(), 0);
  EXPECT_TRUE(std::filesystem::exists(waiting / "s"));
}

TEST_F(UnixNameRights, LinksOnTheWay) {
  folder("home/run", kUser, 0755);
  const auto images = listener(at("home/run/s"), kUser);
  replace_by_link("home/run", "secret", kUser);
  denied(images, options({user()}), "may not use here");
  EXPECT_EQ(entries("secret"), 0u);
  std::filesystem::remove(at("home/run"));
  link("home/run", "home/run.old", kUser);
  served(images, options({user()}), at("home/run/s"), kUser);
}

TEST_F(UnixNameRights, NamesThroughOurDescriptorsLeadNowhere) {
  const std::string name = "/proc/self/fd/9/../s";
  const auto images = dump([&] {
    place_at(::open(at("home").c_str(), O_RDONLY | O_DIRECTORY), 9);
    place_at(unix_at(name, SOCK_STREAM, false), 3);
    MUST(::listen(3, 1) == 0);
    ::close(9);
  });
  std::filesystem::remove(at("s"));
  folder("home/inner", 0, 0755);
  const Fd ours(::open(at("home/inner").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const Fd ninth(::dup3(ours.get(), 9, O_CLOEXEC));
  FileRestorer restorer(images, {}, *log);
  restorer.open_all();
  EXPECT_EQ(restorer.after_gate(), std::vector<std::string>());
  EXPECT_TRUE(std::filesystem::exists(at("s"))) << "where the kernel says that its file is";
  EXPECT_FALSE(std::filesystem::exists(at("home/s"))) << "where its name leads from our descriptors";
}

TEST_F(UnixNameRights, InUseIsTheFileNotItsName) {
  const auto images = listener(at("home/s"), 0);
  link("alias", "home", 0);
  const Fd other(unix_at(at("alias/s"), SOCK_STREAM, false));
  ASSERT_EQ(::listen(other.get(), 1), 0);
  FileRestorer restorer(images, {}, *log);
  try {
    restorer.open_all();
    ADD_FAILURE() << "a living socket's file would be replaced";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), EADDRINUSE) << e.what();
  }
}

TEST_F(UnixNameRights, ConnectionsToOthersByTheUsersRight) {
  folder("home/dev", kUser, 0755);
  const Fd server(unix_at(at("home/dev/log"), SOCK_DGRAM, false));
  own("home/dev/log", kOther, 0666);
  const Fd private_server(unix_at(at("secret/log"), SOCK_DGRAM, false));
  const auto images =
      dump([&] { place_at(unix_at(at("home/dev/log"), SOCK_DGRAM, true), 3); }, {{.ext_unix_sk = true}});
  const auto say_hello = [&] {
    FileRestorer restorer(images, options({user()}), *log);
    restorer.open_all();
    say(restorer.opened().begin()->second, "hello");
  };
  say_hello();
  EXPECT_EQ(read_some(server.get()), "hello");
  replace_by_link("home/dev", "secret", kUser);
  denied(images, options({user()}), "Permission denied", false);
  std::filesystem::remove(at("home/dev"));
  // As /dev/log is one: a link of root's at the path's end.
  folder("home/dev", 0, 0755);
  link("home/dev/log", "home/dev.old/log", 0);
  say_hello();
  EXPECT_EQ(read_some(server.get()), "hello");
}

}  // namespace
}  // namespace migrate::files_testing

// Whose sockets and pipes are, and whom Unix sockets tell of (SO_PEERCRED), whoever restores them: user 65534's here.
#include "files_testing.h"

#include <sys/prctl.h>

#include "core/files/file_owners.h"
#include "ext/ext.pb.h"

namespace migrate::files_testing {
namespace {

class FileOwnersTest : public Files {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    Files::SetUp();
  }
  ImageSet dump_as_user(const Work& setup) {
    return dump([&] {
      MUST(::syscall(SYS_setgroups, 0, nullptr) == 0 && ::setresgid(kUser, kUser, kUser) == 0);
      MUST(::setresuid(kUser, kUser, kUser) == 0);
      setup();
    });
  }
  static void pair() {
    int ends[2];
    MUST(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  }
  static FileRestoreOptions user_options(bool hostile) {
    FileRestoreOptions o;
    o.holders.emplace();
    (*o.holders)[1] = {{kUser, kUser, {}, 0}};
    o.by_root = !hostile;
    if (hostile) o.owners = UserIds{{kUser}, {kUser}};
    return o;
  }
  struct Who {
    uid_t peer, owner;
  };
  /// Of all descriptors.
  std::vector<Who> restored(const ImageSet& images, const FileRestoreOptions& options) {
    FileRestorer restorer(images, options, *log);
    restorer.open_all();
    std::vector<Who> all;
    for (const auto& [id, fd] : restorer.opened()) {
      struct stat st {};
      check(::fstat(fd, &st), "stat", "a restored file");
      const auto peer = S_ISSOCK(st.st_mode) ? peer_credentials(fd, "a socket") : std::nullopt;
      all.push_back({peer ? peer->uid : UINT32_MAX, st.st_uid});
    }
    EXPECT_EQ(::geteuid(), 0u);
    return all;
  }
  /// As CRIU writes them.
  static ImageSet without_owners(const ImageSet& images) {
    ImageSet other;
    for (const auto& [name, bytes] : images.images())
      if (name != kFileOwnersImage) other.adopt(name, bytes);
    return other;
  }
};

TEST_F(FileOwnersTest, AUsersSocketsStayTheUsers) {
  const auto images = dump_as_user([&] { pair(); });
  for (const bool hostile : {false, true}) {
    const auto all = restored(images, user_options(hostile));
    ASSERT_EQ(all.size(), 2u);
    for (const Who& who : all) EXPECT_TRUE(who.peer == kUser && who.owner == kUser) << who.peer << " " << who.owner;
  }
}

TEST_F(FileOwnersTest, ImagesThatDoNotSayAreTheHolders) {
  const auto images = without_owners(dump([] { pair(); }));
  for (const Who& who : restored(images, user_options(false)))
    EXPECT_TRUE(who.peer == kUser && who.owner == kUser) << who.peer << " " << who.owner;
}

TEST_F(FileOwnersTest, WhatRootMadeForAUserTellsOfRootUnlessImagesMayBeHostile) {
  const auto images = dump([] { pair(); });
  for (const Who& who : restored(images, user_options(false))) EXPECT_TRUE(who.peer == 0 && who.owner == 0);
  try {
    (void)restored(images, user_options(true));
    ADD_FAILURE() << "a user's program got sockets that tell of root";
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("user 0 in group 0 made its other end"), std::string::npos) << e.what();
  }
  // With root in the tree it is root's to give.
  FileRestoreOptions with_root = user_options(true);
  with_root.owners->uids.insert(0);
  with_root.owners->gids.insert(0);
  for (const Who& who : restored(images, with_root)) EXPECT_TRUE(who.peer == 0 && who.owner == 0);
}

TEST_F(FileOwnersTest, PipesAndInternetSockets) {
  const Work open = [] {
    MUST(::socket(AF_INET, SOCK_STREAM, 0) == 0 && ::socket(AF_INET, SOCK_DGRAM, 0) == 1);
    int ends[2];
    MUST(::pipe(ends) == 0);
  };
  const auto users = dump_as_user(open), roots = dump(open);
  for (const Who& who : restored(users, user_options(true))) EXPECT_EQ(who.owner, kUser);
  for (const Who& who : restored(roots, user_options(false))) EXPECT_EQ(who.owner, 0u);
  for (const Who& who : restored(roots, user_options(true))) EXPECT_EQ(who.owner, kUser);
}

TEST_F(FileOwnersTest, ConnectionsTellOfBothSides) {
  const std::string path = at("server");
  const auto images = dump([&] {
    place_at(unix_at(path, SOCK_STREAM, false), 3);
    MUST(::listen(3, 7) == 0);
    MUST(::chmod(path.c_str(), 0666) == 0 && ::chmod(path.substr(0, path.rfind('/')).c_str(), 0755) == 0);
    MUST(::setegid(kUser) == 0 && ::seteuid(kUser) == 0);
    place_at(unix_at(path, SOCK_STREAM, true), 4);
    place_at(unix_at(path, SOCK_STREAM, true), 5);
    MUST(::seteuid(0) == 0 && ::setegid(0) == 0);
    place_at(::accept(3, nullptr, nullptr), 6);
    place_at(::accept(3, nullptr, nullptr), 7);
  });
  restore(images, [&] {
    for (const auto& [fd, uid] : {std::pair(3, 0u), std::pair(4, 0u), std::pair(5, 0u), std::pair(6, kUser + 0u)}) {
      const auto peer = peer_credentials(fd, "a socket");
      MUST(peer && peer->uid == uid && peer->gid == uid);
    }
    MUST(peer_credentials(7, "a socket")->uid == kUser);
    say(4, "first"), say(5, "second");
    MUST(read_some(6) == "first" && read_some(7) == "second");
  });
}

TEST_F(FileOwnersTest, WhoSentWhatWaits) {
  const auto images = dump([&] {
    int ends[2];
    const int one = 1;
    for (const int type : {SOCK_DGRAM, SOCK_STREAM}) {
      MUST(::socketpair(AF_UNIX, type, 0, ends) == 0);
      MUST(::setsockopt(ends[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
      say(ends[0], "root's");
      // Credentials are those of a message by the real ids.
      MUST(::setregid(kUser, -1) == 0 && ::setreuid(kUser, -1) == 0);
      say(ends[0], "user's");
      MUST(::setreuid(0, -1) == 0 && ::setregid(0, -1) == 0);
    }
  });
  const auto check_messages = [](uid_t second) {
    for (const int fd : {1, 3})
      for (const uid_t uid : {0u, second}) {
        char text[6];
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))] = {};
        iovec iov{text, sizeof text};
        msghdr header{};
        header.msg_iov = &iov;
        header.msg_iovlen = 1;
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        MUST(::recvmsg(fd, &header, 0) == 6);
        ucred from{};
        MUST(CMSG_FIRSTHDR(&header) != nullptr);
        std::memcpy(&from, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof from);
        MUST(from.uid == uid && from.gid == uid && from.pid > 0);
      }
  };
  restore(images, [&] { check_messages(kUser); });
}

TEST_F(FileOwnersTest, AFaultOfAPeersIsCorrupt) {
  const auto images = dump([] { pair(); });
  ImageSet other;
  for (const auto& [name, bytes] : images.images())
    if (name != kFileOwnersImage) other.adopt(name, bytes);
  ext::FileOwner owner;
  owner.set_id(1);
  owner.mutable_peer()->set_uid(UINT32_MAX);
  other.write(kFileOwnersImage, kFileOwnersMagic).entry(owner);
  EXPECT_THROW((void)restored(other, user_options(false)), Corrupt);
}

/// A coordinator gives up its parent-death signal, and acts for a user afterwards.
TEST_F(FileOwnersTest, ActingAsSomebodyBringsNoDeathSignalBack) {
  ::prctl(PR_SET_PDEATHSIG, SIGWINCH);
  ActingAs acting;
  acting.become({kUser, kUser, {}, 0});
  acting.be_self();
  int signal = 0;
  ::prctl(PR_GET_PDEATHSIG, &signal);
  EXPECT_EQ(signal, SIGWINCH);
  ::prctl(PR_SET_PDEATHSIG, 0);
  acting.become({kUser, kUser, {}, 0});
  acting.be_self();
  ::prctl(PR_GET_PDEATHSIG, &signal);
  EXPECT_EQ(signal, 0);
}

}  // namespace
}  // namespace migrate::files_testing

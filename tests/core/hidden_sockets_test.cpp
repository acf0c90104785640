#include "core/files/hidden_sockets.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/files/open_file.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

namespace fs = std::filesystem;

class HiddenSockets : public ::testing::Test {
 protected:
  HiddenSockets() {
    std::string name = (fs::temp_directory_path() / "migrate-test-XXXXXX").string();
    if (::mkdtemp(name.data()) != nullptr) dir_ = name;
  }
  ~HiddenSockets() override { fs::remove_all(dir_); }
  void touch(const std::string& name) const {
    fs::create_directories((fs::path(dir_) / name).parent_path());
    std::ofstream(dir_ + "/" + name) << "x";
  }
  void bind_socket(const std::string& name) const {
    fs::create_directories((fs::path(dir_) / name).parent_path());
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    const std::string path = dir_ + "/" + name;
    ASSERT_LT(path.size(), sizeof a.sun_path);
    std::memcpy(a.sun_path, path.data(), path.size());
    const Fd fd(::socket(AF_UNIX, SOCK_STREAM, 0));
    ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  }
  bool there(const std::string& name) const { return fs::exists(dir_ + "/" + name); }
  std::string dir_;
};

TEST(UnixSocketFolders, AreThoseOfNamesThatWillBePublished) {
  ImageSet images;
  ImageWriter writer = images.write("files.img", magic::kFiles);
  const auto add = [&](const std::string& name, const std::string& folder = "", bool deleted = false) {
    img::file_entry e;
    e.set_type(img::fd_types::UNIXSK);
    e.set_id(1);
    img::unix_sk_entry& s = *e.mutable_usk();
    s.set_id(1);
    s.set_ino(1);
    s.set_type(1);
    s.set_state(10);
    s.set_flags(0);
    s.set_uflags(0);
    s.set_backlog(1);
    s.set_peer(0);
    s.mutable_fown();
    s.mutable_fown()->set_uid(0);
    s.mutable_fown()->set_euid(0);
    s.mutable_fown()->set_signum(0);
    s.mutable_fown()->set_pid_type(0);
    s.mutable_fown()->set_pid(0);
    s.mutable_opts()->set_so_sndbuf(1);
    s.mutable_opts()->set_so_rcvbuf(1);
    s.mutable_opts()->set_so_snd_tmo_sec(0);
    s.mutable_opts()->set_so_snd_tmo_usec(0);
    s.mutable_opts()->set_so_rcv_tmo_sec(0);
    s.mutable_opts()->set_so_rcv_tmo_usec(0);
    s.set_name(name);
    if (!folder.empty()) s.set_name_dir(folder);
    s.set_deleted(deleted);
    writer.entry(e);
  };
  add(std::string("/run/a\0", 7));
  add("/run/b");
  add("/gone/c", "", true);
  add(std::string("\0abstract", 9));
  add("");
  add("rel/d", "/work");
  add("rel/e");  // hostile: no folder
  const std::vector<std::string> folders = unix_socket_folders(images);
  ASSERT_EQ(folders.size(), 2u);
  EXPECT_EQ(fs::path(folders[0]).lexically_normal(), "/run");
  EXPECT_EQ(fs::path(folders[1]).lexically_normal(), "/work/rel");
  EXPECT_TRUE(unix_socket_folders(ImageSet{}).empty());
}

TEST_F(HiddenSockets, OnlyWhatBearsTheMarkGoes) {
  for (const char* name : {"f/.m-1", "f/.m-2.d/run/deep/s", "f/.m", "f/.mx-1", "f/kept", "g/.m-1"}) bind_socket(name);
  fs::create_symlink("../g", dir_ + "/f/.m-link");
  remove_hidden_sockets({"/f", "/absent"}, dir_, ".m");
  EXPECT_FALSE(there("f/.m-1"));
  EXPECT_FALSE(there("f/.m-2.d"));
  EXPECT_TRUE(there("f/.m"));
  EXPECT_TRUE(there("f/.mx-1"));
  EXPECT_TRUE(there("f/kept"));
  EXPECT_TRUE(there("g/.m-1"));
}

TEST_F(HiddenSockets, WhatIsNotOursStaysWhateverItIsCalled) {
  touch("f/.m-1");
  touch("f/.m-2.d/precious");
  bind_socket("f/.m-2.d/s");
  remove_hidden_sockets({"/f"}, dir_, ".m");
  EXPECT_TRUE(there("f/.m-1"));
  EXPECT_TRUE(there("f/.m-2.d/precious"));
  EXPECT_FALSE(there("f/.m-2.d/s"));
}

TEST_F(HiddenSockets, FoldersAreFoundBelowTheRootFolder) {
  fs::create_directories(dir_ + "/run/x");
  fs::create_directories(dir_ + "/var");
  fs::create_symlink("/run", dir_ + "/var/run");
  EXPECT_EQ(real_folders({"/var/run/x", "/absent"}, dir_),
            (std::vector<std::string>{dir_ + "/run/x", dir_ + "/absent"}));
  bind_socket("run/x/.m-1");
  remove_hidden_sockets({"/var/run/x"}, dir_, ".m");
  EXPECT_FALSE(there("run/x/.m-1"));
}

}  // namespace
}  // namespace migrate

#include "core/files/hidden_sockets.h"

#include <gtest/gtest.h>

#include <cstdlib>
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
  for (const char* name : {"f/.m-1", "f/.m-2.d/run/deep/s", "f/.m", "f/.mx-1", "f/kept", "g/.m-1"}) touch(name);
  fs::create_symlink("../g", dir_ + "/f/.m-link");
  remove_hidden_sockets({"/f", "/absent"}, dir_, ".m");
  EXPECT_FALSE(there("f/.m-1"));
  EXPECT_FALSE(there("f/.m-2.d"));
  EXPECT_FALSE(fs::is_symlink(dir_ + "/f/.m-link"));
  EXPECT_TRUE(there("f/.m"));
  EXPECT_TRUE(there("f/.mx-1"));
  EXPECT_TRUE(there("f/kept"));
  EXPECT_TRUE(there("g/.m-1"));
}

}  // namespace
}  // namespace migrate

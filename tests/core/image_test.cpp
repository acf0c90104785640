#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "core/image/image_set.h"
#include "core/image/magic.h"
#include "images/inventory.pb.h"
#include "images/pipe-data.pb.h"
#include "images/pstree.pb.h"

namespace migrate {
namespace {

img::pstree_entry task(uint32_t pid) {
  img::pstree_entry e;
  e.set_pid(pid);
  e.set_ppid(1);
  e.set_pgid(pid);
  e.set_sid(pid);
  e.add_threads(pid);
  return e;
}

std::vector<uint8_t> head(const ImageSet& set, const std::string& name, size_t n) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i < n; ++i) bytes.push_back(std::to_integer<uint8_t>(set.images().at(name)[i]));
  return bytes;
}

class TemporaryFolder {
 public:
  TemporaryFolder() : path_(::mkdtemp(template_)) {}
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  Fd open() const { return open_path(path_, O_RDONLY | O_DIRECTORY); }
  const std::string& path() const { return path_; }

 private:
  char template_[32] = "/tmp/image-test-XXXXXX";
  std::string path_;
};

TEST(ImageSet, HeadersAreThoseOfTheFormat) {
  ImageSet set;
  set.put("pstree.img", magic::kPstree, task(7));
  EXPECT_EQ(head(set, "pstree.img", 8), (std::vector<uint8_t>{0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50}));
  img::inventory_entry inventory;
  inventory.set_img_version(2);
  set.put("inventory.img", magic::kInventory, inventory);
  EXPECT_EQ(head(set, "inventory.img", 4), (std::vector<uint8_t>{0x16, 0x31, 0x31, 0x58}));
  set.put("stats-dump", magic::kStats, task(1));
  EXPECT_EQ(head(set, "stats-dump", 4), (std::vector<uint8_t>{0x40, 0x59, 0x10, 0x55}));
}

TEST(ImageSet, EntriesAndPayloadComeBackInOrder) {
  ImageSet set;
  auto w = set.write("pipes-data.img", magic::kPipesData);
  for (uint32_t id : {3u, 4u}) {
    img::pipe_data_entry e;
    e.set_pipe_id(id);
    e.set_bytes(5);
    w.entry(e);
    w.raw(as_bytes_of("hello"));
  }
  auto r = set.read("pipes-data.img", magic::kPipesData);
  ASSERT_TRUE(r);
  img::pipe_data_entry e;
  for (uint32_t id : {3u, 4u}) {
    ASSERT_TRUE(r->next(e));
    EXPECT_EQ(e.pipe_id(), id);
    EXPECT_EQ(r->raw(5).size(), 5u);
  }
  EXPECT_FALSE(r->next(e));
}

TEST(ImageSet, SavedAndLoadedIsTheSame) {
  const TemporaryFolder folder;
  ImageSet set;
  set.put("pstree.img", magic::kPstree, task(7));
  set.save(folder.open().get());
  EXPECT_EQ(ImageSet::load(folder.open().get()).images(), set.images());
  struct stat st {};
  ASSERT_EQ(::stat((folder.path() + "/pstree.img").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST(ImageSet, LinksInTheFolderAreNotFollowed) {
  const TemporaryFolder folder;
  std::filesystem::create_symlink("/etc/passwd", folder.path() + "/core-1.img");
  EXPECT_THROW(ImageSet::load(folder.open().get()), Error);
}

TEST(ImageSet, NamesFromAPeerAreBounded) {
  ImageSet set;
  for (const char* bad : {"../x.img", "a/b.img", ".img", "x", "X.img", "pages\n.img", ""})
    EXPECT_THROW(set.adopt(bad, {}), Corrupt) << bad;
  EXPECT_NO_THROW(set.adopt("core-42.img", {}));
}

TEST(ImageSet, WrongKindIsSeen) {
  ImageSet set;
  set.put("pstree.img", magic::kPstree, task(7));
  EXPECT_THROW(set.read("pstree.img", magic::kCore), Corrupt);
  img::pstree_entry e;
  EXPECT_THROW(set.need("absent.img", magic::kPstree, e), Corrupt);
}

TEST(ImageSet, DamagedImagesEndInExceptions) {
  ImageSet good;
  auto w = good.write("pstree.img", magic::kPstree);
  for (uint32_t pid = 1; pid < 20; ++pid) w.entry(task(pid));
  const std::vector<std::byte> bytes = good.images().at("pstree.img");
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 5000; ++round) {
    auto damaged = bytes;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<std::byte>(random());
    damaged.resize(random() % (damaged.size() + 1));
    ImageSet set;
    set.adopt("pstree.img", damaged);
    try {
      auto r = set.read("pstree.img", magic::kPstree);
      img::pstree_entry e;
      while (r->next(e)) EXPECT_GE(e.ByteSizeLong(), 8u);
    } catch (const Corrupt&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace migrate

// Hostile pagemaps: a folder (even ids) whose parent is another one (odd ids), both with pages of their own.
#include <filesystem>

#include "core/memory/page_images.h"
#include "core/restore/address_space.h"
#include "fuzz.h"
#include "image_records.h"
#include "images/pagemap.pb.h"

namespace migrate::fuzz {
namespace {

constexpr uint8_t kPagemap = 8, kShmem = 9;  // image_records.cpp

class Folders {
 public:
  Folders() {
    std::string name = "/dev/shm/migrate-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw Error("make", name, errno);
    path_ = name;
    for (const char* folder : {"/a", "/b"}) std::filesystem::create_directory(name + folder);
    std::filesystem::create_symlink("../b", name + "/a/parent");
    for (int i = 0; i < 2; ++i) {
      fds_[i] = open_path(name + (i == 0 ? "/a" : "/b"), O_RDONLY | O_DIRECTORY);
      for (int id = 1; id < 4; ++id)
        open_at(fds_[i].get(), "pages-" + std::to_string(id) + ".img", O_CREAT | O_RDWR, 0600);
    }
  }
  ~Folders() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  int fd(int which) const { return fds_[which].get(); }

 private:
  std::string path_;
  Fd fds_[2];
};

void locate(int dirfd, const std::string& name) {
  PageImages pages(dirfd);
  uint64_t last = 0;
  for (const StoredPages& s : pages.locate(name)) {
    demand(s.address >= last && s.address <= kUserSpace && s.bytes <= kUserSpace - s.address,
           "pages out of order or range");
    demand(s.offset <= uint64_t{1} << 62 && s.fd >= -1, "pages of no file");
    last = s.address + s.bytes;
  }
}

}  // namespace

const Target kTarget{"chain_fuzz", true};

void run(std::span<const std::byte> input) {
  static const Folders folders;
  std::vector<Record> of[2];
  for (Record r : records_of(input)) {
    if (r.kind != kPagemap && r.kind != kShmem) continue;
    const uint32_t which = r.id & 1;
    r.id = 1;
    of[which].push_back(r);
  }
  for (int i = 0; i < 2; ++i) {
    for (const char* name : {"pagemap-1.img", "pagemap-shmem-1.img"}) ::unlinkat(folders.fd(i), name, 0);
    images_from(of[i]).save(folders.fd(i));
  }
  for (const char* name : {"pagemap-1.img", "pagemap-shmem-1.img"}) try {
      locate(folders.fd(0), name);
    } catch (const Error&) {  // as it should be
    }
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::byte> seed;
  const auto add = [&](uint8_t kind, uint32_t id, const google::protobuf::MessageLite& message) {
    append_record(seed, kind, id, as_bytes_of(message.SerializeAsString()));
  };
  for (const uint32_t folder : {0, 1}) {
    for (const uint8_t kind : {kPagemap, kShmem}) {
      img::pagemap_head head;
      head.set_pages_id(1 + kind % 2);
      add(kind, folder, head);
      for (uint32_t i = 0; i < 4; ++i) {
        img::pagemap_entry entry;
        entry.set_vaddr(0x10000 * (i + 1));
        entry.set_compat_nr_pages(3);
        entry.set_flags(folder == 0 && i % 2 == 0 ? 1 : 4);
        if (i > 1) entry.set_nr_pages(3);
        add(kind, folder, entry);
      }
    }
  }
  return {seed};
}

}  // namespace migrate::fuzz

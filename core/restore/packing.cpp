#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

#include "core/restore/shell.h"

namespace migrate {
namespace {

class Packer {
 public:
  void number(uint64_t value) { bytes(std::as_bytes(std::span(&value, 1))); }
  void bytes(std::span<const std::byte> b) { out_.insert(out_.end(), b.begin(), b.end()); }
  Fd seal(const char* name) const {
    Fd fd(check(::memfd_create(name, MFD_CLOEXEC), "make", "a memory file"));
    write_full(fd.get(), out_, "a memory file");
    return fd;
  }

 private:
  std::vector<std::byte> out_;
};

class Unpacker {
 public:
  explicit Unpacker(int fd) {
    struct stat st{};
    check(::fstat(fd, &st), "stat", "a memory file");
    in_.resize(static_cast<size_t>(st.st_size));
    if (pread_full(fd, in_, 0, "a memory file") != in_.size()) throw Error("read", "a memory file", EIO);
    rest_ = in_;
  }
  bool empty() const { return rest_.empty(); }
  uint64_t number() {
    uint64_t value = 0;
    const auto b = bytes(sizeof value);
    std::memcpy(&value, b.data(), sizeof value);
    return value;
  }
  std::span<const std::byte> bytes(uint64_t n) {
    if (n > rest_.size()) throw Corrupt("a packed table", "it is cut short");
    const auto taken = rest_.first(n);
    rest_ = rest_.subspan(n);
    return taken;
  }

 private:
  std::vector<std::byte> in_;
  std::span<const std::byte> rest_;
};

}  // namespace

Fd pack_images(const ImageSet& images) {
  Packer p;
  for (const auto& [name, bytes] : images.images()) {
    p.number(name.size());
    p.bytes(as_bytes_of(name));
    p.number(bytes.size());
    p.bytes(bytes);
  }
  return p.seal("migrate-images");
}

ImageSet unpack_images(int fd) {
  Unpacker u(fd);
  ImageSet images;
  while (!u.empty()) {
    const auto name = u.bytes(u.number());
    const auto bytes = u.bytes(u.number());
    images.adopt(std::string(reinterpret_cast<const char*>(name.data()), name.size()), {bytes.begin(), bytes.end()});
  }
  return images;
}

Fd pack_table(const std::map<uint32_t, int>& table) {
  Packer p;
  for (const auto& [id, fd] : table) p.number(uint64_t{id} << 32 | static_cast<uint32_t>(fd));
  return p.seal("migrate-descriptors");
}

std::map<uint32_t, int> unpack_table(int fd) {
  Unpacker u(fd);
  std::map<uint32_t, int> table;
  while (!u.empty()) {
    const uint64_t entry = u.number();
    table.emplace(static_cast<uint32_t>(entry >> 32), static_cast<int>(entry & 0xffffffff));
  }
  return table;
}

}  // namespace migrate

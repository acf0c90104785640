#include "migrate/cli/image_chain.h"

#include <array>
#include <cstring>

#include "core/image/magic.h"
#include "images/inventory.pb.h"

namespace migrate::cli {
namespace {

constexpr const char* kInventory = "inventory.img";

/// A random UUID (RFC 4122, version 4).
std::string new_id() {
  std::array<unsigned char, 16> bytes{};
  fill_random(std::as_writable_bytes(std::span(bytes)));
  bytes[6] = static_cast<unsigned char>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<unsigned char>((bytes[8] & 0x3f) | 0x80);
  std::string id;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) id += '-';
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", bytes[i]);
    id += hex;
  }
  return id;
}

}  // namespace

std::string stamp_run_id(ImageSet& images) {
  img::inventory_entry entry;
  images.need(kInventory, magic::kInventory, entry);
  const std::string id = new_id();
  entry.set_dump_criu_run_id(id);
  ImageSet replaced;
  replaced.put(kInventory, magic::kInventory, entry);
  images.adopt(kInventory, replaced.images().at(kInventory));
  return id;
}

std::string run_id_of(int dirfd, const std::string& path) {
  const int fd = ::openat(dirfd, path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    throw Refusal("the previous folder " + path + " cannot be opened: " + std::strerror(errno),
                  "give --prev-images-dir relative to the images folder");
  const Fd folder(fd);
  const int file = ::openat(fd, kInventory, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return {};
  const Fd inventory(file);
  std::vector<std::byte> bytes(1 << 20);
  bytes.resize(read_full(file, bytes, kInventory));
  ImageSet images;
  images.adopt(kInventory, std::move(bytes));
  img::inventory_entry entry;
  images.need(kInventory, magic::kInventory, entry);
  return entry.dump_criu_run_id();
}

}  // namespace migrate::cli

#include "core/image/image_set.h"

#include <google/protobuf/message_lite.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "core/image/bounded_parse.h"
#include "core/image/leave_out.h"
#include "core/image/magic.h"

namespace migrate {
namespace {

/// One entry may be this large (the mm entry of a task with a million mappings has 70 MiB).
constexpr uint32_t kMaxEntry = 128 << 20;

/// A task has six or seven, a thread one: a hundred thousand tasks have fewer.
constexpr size_t kMaxImages = 1 << 20;

void append_u32(std::vector<std::byte>& out, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<std::byte>(value >> shift));
}

uint32_t take_u32(std::span<const std::byte>& rest, const std::string& name) {
  if (rest.size() < 4) throw Corrupt(name, "it ends in the middle of a number");
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= std::to_integer<uint32_t>(rest[i]) << (8 * i);
  rest = rest.subspan(4);
  return value;
}

bool service(uint32_t type) { return type == magic::kStats || type == magic::kIrmapCache; }

bool good_name(std::string_view name) {
  return name.size() > 4 && name.size() < 64 && name.ends_with(".img") && name.front() != '.' &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.'; });
}

/// At most `limit` bytes.
std::vector<std::byte> read_image(Fd fd, const std::string& name, uint64_t limit) {
  struct stat st {};
  check(::fstat(fd.get(), &st), "stat", name);
  if (!S_ISREG(st.st_mode)) throw Corrupt(name, "it is not a regular file");
  if (static_cast<uint64_t>(st.st_size) > limit) throw Error("load image", name, EFBIG);
  std::vector<std::byte> bytes(static_cast<size_t>(st.st_size));
  bytes.resize(read_full(fd.get(), bytes, name));
  return bytes;
}

}  // namespace

void ImageWriter::entry(const google::protobuf::MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  append_u32(out_, static_cast<uint32_t>(size));
  const size_t at = out_.size();
  out_.resize(at + size);
  message.SerializeToArray(out_.data() + at, static_cast<int>(size));
}

void ImageWriter::raw(std::span<const std::byte> bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }

bool ImageReader::next(google::protobuf::MessageLite& message) {
  if (rest_.empty()) return false;
  const uint32_t size = take_u32(rest_, name_);
  if (size > rest_.size() || size > kMaxEntry) throw Corrupt(name_, "an entry is longer than the image");
  if (!parse_bounded(message, rest_.first(size))) throw Corrupt(name_, "an entry does not decode");
  rest_ = rest_.subspan(size);
  leave_out(message);
  return true;
}

std::span<const std::byte> ImageReader::raw(size_t bytes) {
  if (bytes > rest_.size()) throw Corrupt(name_, "payload is longer than the image");
  const auto payload = rest_.first(bytes);
  rest_ = rest_.subspan(bytes);
  return payload;
}

ImageWriter ImageSet::write(const std::string& name, uint32_t type) {
  auto [it, fresh] = images_.try_emplace(name);
  if (fresh && type != magic::kRaw) {
    if (type != magic::kInventory) append_u32(it->second, service(type) ? magic::kService : magic::kCommon);
    append_u32(it->second, type);
  }
  return ImageWriter(it->second);
}

void ImageSet::put(const std::string& name, uint32_t type, const google::protobuf::MessageLite& message) {
  write(name, type).entry(message);
}

std::optional<ImageReader> ImageSet::read(const std::string& name, uint32_t type) const {
  const auto it = images_.find(name);
  if (it == images_.end()) return std::nullopt;
  std::span<const std::byte> rest(it->second);
  if (type != magic::kRaw) {
    if (type != magic::kInventory && take_u32(rest, name) != (service(type) ? magic::kService : magic::kCommon))
      throw Corrupt(name, "it is not an image");
    if (take_u32(rest, name) != type) throw Corrupt(name, "it is an image of another kind");
  }
  return ImageReader(name, rest);
}

bool ImageSet::get(const std::string& name, uint32_t type, google::protobuf::MessageLite& message) const {
  auto reader = read(name, type);
  if (!reader) return false;
  if (!reader->next(message)) throw Corrupt(name, "it is empty");
  return true;
}

void ImageSet::need(const std::string& name, uint32_t type, google::protobuf::MessageLite& message) const {
  if (!get(name, type, message)) throw Corrupt("the image folder", name + " is missing");
}

void ImageSet::save(int dirfd) const {
  for (const auto& [name, bytes] : images_) {
    ::unlinkat(dirfd, name.c_str(), 0);
    const Fd fd = open_at(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    write_full(fd.get(), bytes, name);
  }
}

ImageSet ImageSet::load(int dirfd, uint64_t limit) {
  ImageSet set;
  uint64_t total = 0;
  const std::string folder = fd_link(dirfd);
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const std::string name = file.path().filename();
    if (!good_name(name) || name.starts_with("pages-")) continue;
    if (set.images_.size() >= kMaxImages) throw Corrupt("the image folder", "it holds too many images");
    std::vector<std::byte> bytes =
        read_image(open_at(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK), name, limit - total);
    total += bytes.size();
    set.images_.emplace(name, std::move(bytes));
  }
  return set;
}

ImageSet ImageSet::load_one(int dirfd, const std::string& name) {
  ImageSet set;
  Fd fd(::openat(dirfd, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd && errno != ENOENT) throw Error("open", name, errno);
  if (fd) set.images_.emplace(name, read_image(std::move(fd), name, kMostBytes));
  return set;
}

void ImageSet::adopt(const std::string& name, std::vector<std::byte> bytes) {
  if (!good_name(name)) throw Corrupt("an image from the peer", "its name is not allowed");
  if (images_.size() >= kMaxImages) throw Corrupt("the images from the peer", "there are too many");
  images_[name] = std::move(bytes);
}

uint64_t ImageSet::bytes() const {
  uint64_t total = 0;
  for (const auto& [name, bytes] : images_) total += bytes.size();
  return total;
}

std::optional<uint32_t> id_in_name(std::string_view name, std::string_view stem) {
  if (!name.starts_with(stem) || !name.substr(stem.size()).starts_with('-')) return std::nullopt;
  name.remove_prefix(stem.size() + 1);
  uint32_t id = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, id);
  if (error != std::errc() || std::string_view(stop, static_cast<size_t>(end - stop)) != ".img") return std::nullopt;
  return id;
}

std::string image_name(std::string_view stem, uint64_t id) {
  return std::string(stem) + "-" + std::to_string(id) + ".img";
}

}  // namespace migrate

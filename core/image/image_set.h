// The images of one checkpoint, in memory: every file of an image folder but the pages. A dump fills an ImageSet and
// either saves it into a folder or sends it to another host; a restore loads it from either. Page contents never pass
// through here (see core/memory): an ImageSet stays small.
//
// Everything read back is hostile: sizes are checked against what is there before anything is allocated, names against
// a fixed alphabet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/fd.h"

namespace google::protobuf {
class MessageLite;
}

namespace migrate {

/// Appends entries to one image: header first, then `u32 size + protobuf` each, optionally with raw payload behind.
class ImageWriter {
 public:
  explicit ImageWriter(std::vector<std::byte>& out) : out_(out) {}
  void entry(const google::protobuf::MessageLite& message);
  void raw(std::span<const std::byte> bytes);

 private:
  std::vector<std::byte>& out_;
};

/// Walks the entries of one image. Throws Corrupt, naming the image.
class ImageReader {
 public:
  ImageReader(std::string name, std::span<const std::byte> rest) : name_(std::move(name)), rest_(rest) {}
  /// Parses the next entry; false at the end of the image.
  bool next(google::protobuf::MessageLite& message);
  /// Exactly `bytes` of raw payload; the span lives as long as the ImageSet.
  std::span<const std::byte> raw(size_t bytes);
  /// What has not been read yet.
  std::span<const std::byte> rest() const { return rest_; }

 private:
  std::string name_;
  std::span<const std::byte> rest_;
};

class ImageSet {
 public:
  static constexpr uint64_t kMostBytes = uint64_t{1} << 30;

  /// Starts (or continues) image `name` ("core-42.img") with the type magic `type` (core/image/magic.h). kInventory and
  /// service magics get their own header form, kRaw none.
  ImageWriter write(const std::string& name, uint32_t type);
  /// Shorthand for an image of one entry.
  void put(const std::string& name, uint32_t type, const google::protobuf::MessageLite& message);

  bool has(const std::string& name) const { return images_.contains(name); }
  /// Opens `name` for reading; nullopt if it is absent; Corrupt if its header is not `type`'s.
  std::optional<ImageReader> read(const std::string& name, uint32_t type) const;
  /// The single (or first) entry of `name`; false if the image is absent.
  bool get(const std::string& name, uint32_t type, google::protobuf::MessageLite& message) const;
  /// As get, but an absent image is Corrupt.
  void need(const std::string& name, uint32_t type, google::protobuf::MessageLite& message) const;

  /// Writes every image into the folder `dirfd` (created 0600; an existing file is replaced).
  void save(int dirfd) const;
  /// Loads every *.img file but pages-*.img from `dirfd`, at most `limit` bytes in all.
  static ImageSet load(int dirfd, uint64_t limit = kMostBytes);
  /// Only image `name`, if it is there.
  static ImageSet load_one(int dirfd, const std::string& name);

  const std::map<std::string, std::vector<std::byte>>& images() const { return images_; }
  /// Adds an image as it came from a peer: the name must be made of [a-z0-9.-] and end in ".img". Throws Corrupt.
  void adopt(const std::string& name, std::vector<std::byte> bytes);
  uint64_t bytes() const;

 private:
  std::map<std::string, std::vector<std::byte>> images_;
};

/// "core-42.img"
std::string image_name(std::string_view stem, uint64_t id);
/// 42 in "core-42.img" for the stem "core"; nullopt: it is another name.
std::optional<uint32_t> id_in_name(std::string_view name, std::string_view stem);

}  // namespace migrate

// Where the pages of an image folder go: the seam between who has pages and the folder they end up in, which may be on
// another machine (pageserver/criu_page_client).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/io_ring.h"
#include "core/image/image_set.h"
#include "core/memory/page_buffers.h"
#include "core/memory/page_images.h"
#include "core/memory/page_io.h"
#include "core/memory/page_runs.h"
#include "core/memory/track_set.h"

namespace migrate {

/// Pages side by side in a memory.
struct PlacedPages {
  uint64_t address = 0, pages = 0;
  const std::byte* data = nullptr;  ///< nullptr: they are as the parent has them
};

/// Takes pages, one memory after the other, each in ascending order.
class PageStore {
 public:
  /// Buffers that a caller may hold at a time.
  static constexpr size_t kHeld = 4;

  virtual ~PageStore() = default;
  /// Starts the next memory. Whether the folder has a parent that has pages of it. Throws Corrupt if it came before.
  virtual bool open(MemoryId memory) = 0;
  /// An empty buffer for put(). Waits until there is one.
  virtual PageFileBuffer buffer() = 0;
  /// Takes `pages`, whose data stand in `buffer`, which is the store's from now on: it may be stored from there later,
  /// and a failure be told by a later call. Throws Corrupt if the parent lacks one of its pages.
  virtual void put(PageFileBuffer buffer, std::span<const PlacedPages> pages) = 0;
  /// After the last memory: returns when everything is stored.
  virtual void finish() = 0;

  /// put() of a copy of whole pages.
  void write(uint64_t address, std::span<const std::byte> data);
  /// put() of pages that are as the parent has them.
  void in_parent(uint64_t address, uint64_t pages);
};

/// A local image folder: pages-N.img (N from 1, one a memory) are written as pages come; the pagemap images, without
/// which no restore takes the pages, by finish(). Addresses may come from the network.
class PageFolder final : public PageStore {
 public:
  /// Pagemaps go into `images`; with `save_pagemaps` they are written into the folder by finish(), else the caller
  /// saves `images`. The link `parent` of the folder is followed if there is one. `dirfd` and `images` stay the
  /// caller's.
  PageFolder(int dirfd, ImageSet& images, bool save_pagemaps);
  /// Pages at these addresses are marked as such that a restore may leave to a lazy-pages daemon. Before open().
  void mark_lazy(PagesByMemory lazy) { lazy_ = std::move(lazy); }
  /// These pages are only named, as such that come from elsewhere after a lazy restore; they are not put. Before
  /// open().
  void leave(PagesByMemory left) { left_ = std::move(left); }
  bool open(MemoryId memory) override;
  PageFileBuffer buffer() override;
  void put(PageFileBuffer buffer, std::span<const PlacedPages> pages) override;
  void finish() override;

  /// Whether the parent has pages of `memory`.
  bool parent_has(MemoryId memory);
  uint64_t pages_written() const { return written_; }

 private:
  /// A pages image, and a write to one.
  struct Output {
    std::string name;
    Fd fd;
  };
  struct Write {
    PageFileBuffer buffer;
    std::shared_ptr<Output> to;  ///< must be open as long
  };

  void advance(uint64_t address, uint64_t pages);
  void name_left(uint64_t before);
  void extend_present(uint64_t address, uint64_t pages);
  void extend(uint64_t address, uint64_t pages, uint32_t flags);
  void flush();
  void ended(const IoRing::Done& done);

  int dirfd_;
  ImageSet& images_;
  bool save_pagemaps_;
  Fd parent_dir_;
  std::unique_ptr<PageImages> parent_;
  uint32_t pages_id_ = 0;
  std::string name_;  ///< of the pagemap that is being written
  std::optional<ImageWriter> pagemap_;
  std::shared_ptr<Output> out_;
  uint64_t offset_ = 0;  ///< of the next page in it
  PageSet parent_pages_;
  PagesByMemory lazy_;
  std::vector<PageSet::Range> lazy_here_;  ///< of the memory that is being written, from the one that comes next
  size_t next_lazy_ = 0;
  PagesByMemory left_;
  std::vector<PageSet::Range> left_here_;
  size_t next_left_ = 0;
  uint64_t end_ = 0;  ///< of the pages that came
  uint64_t entry_address_ = 0, entry_pages_ = 0;
  uint32_t entry_flags_ = 0;
  uint64_t written_ = 0;
  std::optional<Error> failed_;
  PageBuffers buffers_;
  std::map<uint64_t, Write> writes_;  ///< in flight, by tag
  uint64_t next_tag_ = 0;
  IoRing ring_;  ///< last, so that it ends before what it reads from
};

/// Makes (or replaces) the link `parent` of an image folder. `target` as CRIU's --prev-images-dir: relative to the
/// folder. Throws Refusal if it leads nowhere, or to the folder itself.
void link_parent(int dirfd, const std::string& target);
/// Removes the link, so that the folder stands alone.
void unlink_parent(int dirfd);

}  // namespace migrate

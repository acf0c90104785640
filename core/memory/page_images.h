// Reading pages-N.img through pagemap images, with the parents that incremental dumps refer to.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/image/image_set.h"
#include "core/memory/track_set.h"

namespace migrate {

/// pagemap_entry.flags
constexpr uint32_t kPageInParent = 1, kPageLazy = 2, kPagePresent = 4;

/// Pages that stand one after the other in a pages image.
struct StoredPages {
  uint64_t address = 0, bytes = 0;
  int fd = -1;  ///< of the pages image; owned by PageImages. -1: they are only named, and at a page server (lazy dump)
  uint64_t offset = 0;
  bool lazy = false;  ///< may come after the task has begun to run
};

/// `runs` (ascending) without `pages`.
std::vector<StoredPages> stored_without(const std::vector<StoredPages>& runs, const PageSet& pages);
/// Pages of `runs` that no folder has.
PageSet only_named(const std::vector<StoredPages>& runs);

class PageImages {
 public:
  /// `dirfd` stays the caller's and must live as long.
  explicit PageImages(int dirfd);
  bool has(const std::string& name) const;
  /// Where the pages of the pagemap image `name` are, ascending. Throws Corrupt; also if a task has no such image,
  /// for memory that nobody filled would read as zeros.
  std::vector<StoredPages> locate(const std::string& name);

 private:
  PageImages(Fd dir, int depth);
  PageImages& parent();
  int pages_file(uint32_t id);
  void add_from_parent(const std::string& name, uint64_t start, uint64_t end, std::vector<StoredPages>& out);

  Fd own_dir_;
  int dirfd_;
  int depth_ = 0;
  std::map<uint32_t, Fd> files_;
  std::unique_ptr<PageImages> parent_;
  std::map<std::string, std::vector<StoredPages>> located_in_parent_;
};

}  // namespace migrate

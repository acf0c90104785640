// The staging memory of one shell.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_fill.h"
#include "core/memory/page_images.h"
#include "core/memory/tree_layout.h"
#include "core/restore/restore.h"
#include "core/restore/shell.h"
#include "core/restore/staged_areas.h"
#include "core/restore/task_image.h"

namespace migrate {

class Staging {
 public:
  explicit Staging(pid_t pid) : pid_(pid), areas_(pid) {}
  /// While the source runs: makes this process's staging memory that of `areas`. Both return true if memory that was
  /// filled before may be lost, and when called first.
  bool follow(const std::vector<TreeLayout::Area>& areas);
  /// Makes it that of the final images, with the file-private mappings; once.
  bool settle(const ShellContext& context, const TaskImage& task, const ImageSet& images);
  /// What a filler in another process needs.
  FillTarget make_target();
  /// Gives back pages of the anonymous part.
  void discard(const std::vector<AddressRange>& ranges);
  /// Makes pages of the anonymous part ready to be filled; `huge_pages` of an area: as such.
  void reserve(const std::vector<TreeLayout::Area>& pages);
  /// Pages of the task are to come later. A huge page, whoever asked for it or khugepaged, would bring zeros in their
  /// place, so none is made from settle() on until they are registered (set_final_state). Before fill_from() and
  /// release(), which would allow them. Whether settle() is the first call is not touched by this.
  void keep_pages_small() { small_ = true; }
  /// Reads the pages from image files itself, but for those in `left_out`.
  void fill_from(const TaskImage& task, PageImages& pages, const PageSet& left_out);
  /// Call before the memory is moved: ends the registration, gives the ranges as single mappings.
  std::vector<StagedRange> release();

 private:
  void set_up();
  /// Where the stored pages go, as far as they are staged.
  std::vector<PagesIn> places(PageImages& pages, const PageSet& left_out) const;
  StagedArea area_of_file(const TreeLayout::Area& area, std::map<std::string, Fd>& opened, StagedFiles& files);

  pid_t pid_;
  bool used_ = false;
  bool small_ = false;  ///< keep_pages_small()
  StagedAreas areas_;
  std::vector<StagedRange> ranges_;     ///< of the final mappings
  std::vector<AddressRange> unstaged_;  ///< pages may come for them, and are dropped
  bool dropped_ = false;                ///< pages that are needed in the end, since a file was not found
};

/// Sends a target to the launcher, in pieces, and the receiving side's assembly.
void send_target(int socket, const FillTarget& target);
void add_target_piece(std::vector<FillTarget>& targets, struct Message& piece);

}  // namespace migrate

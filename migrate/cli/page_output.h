// Where the pages of a dump or pre-dump go: into the images folder, or to a page server, with a previous folder or not.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/dump/dump.h"
#include "core/memory/page_files.h"
#include "migrate/cli/core_options.h"
#include "pageserver/stream.h"

namespace migrate::cli {

/// Throws Refusal for options that cannot be served, or not together.
void check_page_options(const CoreOptions& options);

class PageOutput {
 public:
  /// Connects to the page server, if there is one, and looks at the previous folder. Nothing is written yet.
  /// `options` and `images_dir` stay the caller's.
  PageOutput(const CoreOptions& options, int images_dir);
  /// Run id of the previous folder; empty if there is none.
  const std::string& previous() const { return previous_; }
  /// Stores pages. The folder's link `parent` is made if the folder needs its parent, else removed. Pagemaps go into
  /// `images`, unless a page server has them.
  /// `lazy`: addresses that are marked as such in a local folder (PageFolder::mark_lazy); `left`: pages that are only
  /// named there (PageFolder::leave).
  WrittenPages write(const std::vector<PageSource>& sources, const PagesByMemory& in_parent, ImageSet& images,
                     const PagesByMemory& lazy = {}, const PagesByMemory& left = {});

 private:
  const CoreOptions& options_;
  int images_dir_;
  std::string previous_;
  std::unique_ptr<Stream> server_;
};

void print_dump_stats(const DumpStats& stats);

}  // namespace migrate::cli

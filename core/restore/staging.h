// The staging memory of one shell.
#pragma once

#include <vector>

#include "core/base/fd.h"
#include "core/restore/page_images.h"
#include "core/restore/restore.h"
#include "core/restore/shell.h"
#include "core/restore/task_image.h"

namespace migrate {

class Staging {
 public:
  /// Maps the staging memory in this process.
  Staging(const ShellContext& context, const TaskImage& task);
  /// What a filler in another process needs; registers a userfaultfd over the anonymous part.
  FillTarget make_target();
  /// Reads the pages from image files itself.
  void fill_from(PageImages& pages);
  /// Ends the registration; call before the memory is moved.
  void unregister();
  const std::vector<StagedRange>& ranges() const { return ranges_; }

 private:
  pid_t pid_;
  std::vector<StagedRange> ranges_;
  std::vector<AddressRange> kernel_made_;
  Fd userfaultfd_;
};

/// Sends a target to the launcher, in pieces, and the receiving side's assembly.
void send_target(int socket, const FillTarget& target);
void add_target_piece(std::vector<FillTarget>& targets, struct Message& piece);

}  // namespace migrate

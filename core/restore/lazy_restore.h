// Pages that are left out when a tree is restored, and come when it runs: which they are in images, and how a task's
// memory is registered for them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_images.h"
#include "core/memory/page_runs.h"
#include "core/restore/task_image.h"

namespace migrate {

/// What an image folder marks as lazy of a task's pages, but for those that must be there before it runs whatever the
/// folder says (core/memory/lazy_pages.h).
PageSet lazy_in_images(const TaskImage& task, PageImages& pages);
/// Of all tasks of a folder.
PagesByMemory lazy_in_images(const ImageSet& images, PageImages& pages);

/// Throws Refusal, naming `folder`, if it only names pages that a restore must find there: all that are named, or with
/// `lazy` those that may not come later.
void refuse_named(const ImageSet& images, PageImages& pages, bool lazy, const std::string& folder);

/// The mappings that have pages in `missing`, each as a whole: one that is cut could not be moved by mremap(2) any
/// more. Throws Corrupt if some lie elsewhere.
std::vector<RemoteRange> lazy_ranges(const TaskImage& task, const PageSet& missing);

/// In a shell: a userfaultfd of its memory, which becomes the task's. Not used yet: a task in a user namespace could
/// make none later.
Fd make_lazy_userfaultfd();

/// From outside, after the last write of ours to pages that may be missing; the task is stopped: UFFDIO_API and
/// UFFDIO_REGISTER over its lazy_ranges(), which are returned. `pagemap`: of the task. Throws Error if a page of
/// `missing` is there already: what somebody wrote there would keep the rest of the page from ever coming.
std::vector<RemoteRange> register_lazy(int userfaultfd, const TaskImage& task, const PageSet& missing, int pagemap);

/// The task has shared memory that may be among what comes later.
bool may_have_lazy_shared(const TaskImage& task);

/// Its mappings of shared memory of which pages come later.
struct LazySharedRanges {
  std::vector<RemoteRange> ranges;
  std::vector<RemoteRange> places;  ///< of each range, among all objects
  PageSet eager;                    ///< within `ranges`
};

/// The same of its mappings of shared memory, with another userfaultfd, for pages that are missing and for those that
/// have not come (LazyMemory): of objects that have a place among `bases`. `mem`: /proc/PID/mem of the task.
LazySharedRanges register_lazy_shared(int userfaultfd, const TaskImage& task, int mem,
                                      const std::map<uint64_t, uint64_t>& bases);

/// Brings pages that are registered so, and are there, into the task's page tables: that is where the kernel looks for
/// them when a thread ends.
void show_pages(int userfaultfd, const PageSet& pages);

}  // namespace migrate

#include "core/memory/page_images.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/types.h"
#include "core/image/magic.h"
#include "images/pagemap.pb.h"

namespace migrate {
namespace {

constexpr int kMaxParents = 256;

}  // namespace

std::vector<StoredPages> stored_without(const std::vector<StoredPages>& runs, const PageSet& pages) {
  std::vector<StoredPages> left;
  auto cut = pages.ranges().begin();
  for (const StoredPages& run : runs) {
    const uint64_t end = run.address + run.bytes;
    const auto keep = [&](uint64_t from, uint64_t upto) {
      if (from < upto) left.push_back({from, upto - from, run.fd, run.offset + (from - run.address), run.lazy});
    };
    uint64_t at = run.address;
    while (cut != pages.ranges().end() && cut->end <= at) ++cut;
    for (auto c = cut; c != pages.ranges().end() && c->start < end; ++c) {
      keep(at, c->start);
      at = std::max(at, c->end);
    }
    keep(at, end);
  }
  return left;
}

PageSet only_named(const std::vector<StoredPages>& runs) {
  PageSet named;
  for (const StoredPages& s : runs)
    if (s.fd < 0) named.append(s.address, s.address + s.bytes);
  return named;
}

PageImages::PageImages(int dirfd) : dirfd_(dirfd) {}

PageImages::PageImages(Fd dir, int depth) : own_dir_(std::move(dir)), dirfd_(own_dir_.get()), depth_(depth) {}

bool PageImages::has(const std::string& name) const {
  return ::faccessat(dirfd_, name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

PageImages& PageImages::parent() {
  if (!parent_) {
    if (depth_ >= kMaxParents) throw Corrupt("the image folder", "its chain of parents has no end");
    parent_.reset(new PageImages(open_at(dirfd_, "parent", O_RDONLY | O_DIRECTORY), depth_ + 1));
  }
  return *parent_;
}

int PageImages::pages_file(uint32_t id) {
  const auto it = files_.find(id);
  if (it != files_.end()) return it->second.get();
  Fd fd = open_at(dirfd_, image_name("pages", id), O_RDONLY | O_NOFOLLOW);
  return files_.emplace(id, std::move(fd)).first->second.get();
}

void PageImages::add_from_parent(const std::string& name, uint64_t start, uint64_t end, std::vector<StoredPages>& out) {
  auto it = located_in_parent_.find(name);
  if (it == located_in_parent_.end()) it = located_in_parent_.emplace(name, parent().locate(name)).first;
  uint64_t at = start;
  auto s = std::partition_point(it->second.begin(), it->second.end(),
                                [&](const StoredPages& p) { return p.address + p.bytes <= start; });
  for (; s != it->second.end() && s->address <= at && at < end; ++s) {
    const uint64_t upto = std::min(end, s->address + s->bytes);
    out.push_back({at, upto - at, s->fd, s->offset + (at - s->address)});
    at = upto;
  }
  if (at != end) throw Corrupt(name, "pages that its parent should have are missing there");
}

std::vector<StoredPages> PageImages::locate(const std::string& name) {
  std::vector<StoredPages> all;
  // Alone: each process of a restore asks for few, and a big tree has thousands.
  const ImageSet images = ImageSet::load_one(dirfd_, name);
  auto reader = images.read(name, magic::kPagemap);
  if (!reader && name.starts_with("pagemap-shmem-")) return all;  // CRIU writes none for an object without pages
  if (!reader) throw Corrupt(name, "it is missing; were its pages written by a page server, into another folder?");
  img::pagemap_head head;
  if (!reader->next(head)) throw Corrupt(name, "it is empty");
  uint64_t offset = 0, last_end = 0;
  for (img::pagemap_entry e; reader->next(e); e.Clear()) {
    const uint64_t pages = e.has_nr_pages() ? e.nr_pages() : e.compat_nr_pages();
    const uint32_t flags = e.has_flags() ? e.flags() : (e.in_parent() ? kPageInParent : kPagePresent);
    if (e.vaddr() % kPageSize != 0 || e.vaddr() < last_end || e.vaddr() > kUserSpace ||
        pages > (kUserSpace - e.vaddr()) / kPageSize)
      throw Corrupt(name, "a run of pages is out of range");
    const uint64_t bytes = pages * kPageSize;
    last_end = e.vaddr() + bytes;
    if ((flags & kPageInParent) != 0) {
      add_from_parent(name, e.vaddr(), last_end, all);
    } else if ((flags & kPagePresent) != 0) {
      all.push_back({e.vaddr(), bytes, pages_file(head.pages_id()), offset, (flags & kPageLazy) != 0});
      offset += bytes;
    } else if ((flags & kPageLazy) != 0) {
      all.push_back({.address = e.vaddr(), .bytes = bytes, .lazy = true});
    }
  }
  return all;
}

}  // namespace migrate

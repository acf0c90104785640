#include "core/memory/page_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "core/image/magic.h"
#include "core/memory/page_files.h"
#include "images/pagemap.pb.h"

namespace migrate {
namespace {

constexpr uint32_t kMaxMemories = 1 << 16;  // each is two files
constexpr size_t kWrites = 4;               // in flight; those of one file are done one after the other

}  // namespace

void PageStore::write(uint64_t address, std::span<const std::byte> data) {
  if (data.size() % kPageSize != 0) throw Corrupt("pages", "one is not whole");
  while (!data.empty()) {
    PageFileBuffer copy = buffer();
    const auto piece = data.first(std::min(data.size(), copy.bytes().size()));
    std::memcpy(copy.bytes().data(), piece.data(), piece.size());
    const PlacedPages pages{address, piece.size() / kPageSize, copy.bytes().data()};
    put(std::move(copy), {&pages, 1});
    address += piece.size();
    data = data.subspan(piece.size());
  }
}

void PageStore::in_parent(uint64_t address, uint64_t pages) {
  const PlacedPages same{address, pages, nullptr};
  put({}, {&same, 1});
}

PageFolder::PageFolder(int dirfd, ImageSet& images, bool save_pagemaps)
    : dirfd_(dirfd), images_(images), save_pagemaps_(save_pagemaps), buffers_(kHeld + kWrites), ring_(kWrites) {
  const int parent = ::openat(dirfd, "parent", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (parent < 0 && errno != ENOENT) throw Error("open", "the folder's link `parent`", errno);
  if (parent < 0) return;
  parent_dir_.reset(parent);
  parent_ = std::make_unique<PageImages>(parent_dir_.get());
}

bool PageFolder::parent_has(MemoryId memory) { return parent_ && parent_->has(pagemap_name(memory)); }

bool PageFolder::open(MemoryId memory) {
  name_left(UINT64_MAX);
  flush();
  name_ = pagemap_name(memory);
  if (images_.has(name_)) throw Corrupt(name_, "its pages come twice");
  if (++pages_id_ > kMaxMemories) throw Corrupt(name_, "too many memories for one folder");
  const std::string pages = image_name("pages", pages_id_);
  ::unlinkat(dirfd_, pages.c_str(), 0);
  out_ =
      std::make_shared<Output>(Output{pages, open_at(dirfd_, pages, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600)});
  offset_ = 0;
  pagemap_.emplace(images_.write(name_, magic::kPagemap));
  img::pagemap_head head;
  head.set_pages_id(pages_id_);
  pagemap_->entry(head);
  end_ = 0;
  const auto lazy = lazy_.find(memory);
  lazy_here_ = lazy == lazy_.end() ? std::vector<PageSet::Range>{} : lazy->second.ranges();
  next_lazy_ = 0;
  const auto left = left_.find(memory);
  left_here_ = left == left_.end() ? std::vector<PageSet::Range>{} : left->second.ranges();
  next_left_ = 0;
  parent_pages_.clear();
  if (!parent_has(memory)) return false;
  for (const StoredPages& s : parent_->locate(name_))
    if (s.fd >= 0) parent_pages_.append(s.address, s.address + s.bytes);
  return true;
}

/// Pages that are left out come between those that are put, in ascending order.
void PageFolder::name_left(uint64_t before) {
  for (; next_left_ < left_here_.size() && left_here_[next_left_].start < before; ++next_left_) {
    const PageSet::Range& r = left_here_[next_left_];
    if (r.end > before) throw Corrupt(name_, "a page is both stored and left out");
    extend(r.start, (r.end - r.start) / kPageSize, kPageLazy);
  }
}

void PageFolder::advance(uint64_t address, uint64_t pages) {
  if (!pagemap_) throw Corrupt("pages", "of no memory");
  if (address % kPageSize != 0 || address < end_ || address > kUserSpace || pages > (kUserSpace - address) / kPageSize)
    throw Corrupt(name_, "a run of pages is out of range or out of order");
  name_left(address);
  if (next_left_ < left_here_.size() && left_here_[next_left_].start < address + pages * kPageSize)
    throw Corrupt(name_, "a page is both stored and left out");
  end_ = address + pages * kPageSize;
}

PageFileBuffer PageFolder::buffer() {
  while (!buffers_.any_free()) ended(ring_.wait());
  return buffers_.take();
}

void PageFolder::put(PageFileBuffer buffer, std::span<const PlacedPages> pages) {
  std::vector<iovec> parts;
  uint64_t bytes = 0;
  for (const PlacedPages& p : pages) {
    advance(p.address, p.pages);
    if (p.data == nullptr) {
      if (!parent_pages_.contains(p.address, p.address + p.pages * kPageSize))
        throw Corrupt(name_, "pages that should stand in the parent folder are missing there");
      extend(p.address, p.pages, kPageInParent);
      continue;
    }
    extend_present(p.address, p.pages);
    auto* data = const_cast<std::byte*>(p.data);  // NOLINT: iovec has no other; it is only read
    if (!parts.empty() && static_cast<std::byte*>(parts.back().iov_base) + parts.back().iov_len == data) {
      parts.back().iov_len += p.pages * kPageSize;
    } else {
      parts.push_back({data, p.pages * kPageSize});
    }
    bytes += p.pages * kPageSize;
  }
  if (bytes == 0) return;
  written_ += bytes / kPageSize;
  const uint64_t tag = next_tag_++;
  const Write& write = writes_.emplace(tag, Write{std::move(buffer), out_}).first->second;
  ring_.write(tag, write.to->fd.get(), parts, std::exchange(offset_, offset_ + bytes));
  while (const auto done = ring_.poll()) ended(*done);
}

void PageFolder::ended(const IoRing::Done& done) {
  const auto write = writes_.extract(done.tag);
  if (!failed_ && done.error != 0) failed_.emplace("write", write.mapped().to->name, done.error);
  if (failed_) throw Error(*failed_);
}

/// Cut where what may be lazy begins and ends.
void PageFolder::extend_present(uint64_t address, uint64_t pages) {
  const uint64_t end = address + pages * kPageSize;
  while (address != end) {
    while (next_lazy_ < lazy_here_.size() && lazy_here_[next_lazy_].end <= address) ++next_lazy_;
    uint64_t upto = end;
    bool lazy = false;
    if (next_lazy_ < lazy_here_.size()) {
      lazy = lazy_here_[next_lazy_].start <= address;
      upto = std::min(end, lazy ? lazy_here_[next_lazy_].end : lazy_here_[next_lazy_].start);
    }
    extend(address, (upto - address) / kPageSize, lazy ? kPagePresent | kPageLazy : kPagePresent);
    address = upto;
  }
}

void PageFolder::extend(uint64_t address, uint64_t pages, uint32_t flags) {
  if (pages == 0) return;
  if (entry_pages_ != 0 && entry_flags_ == flags && entry_address_ + entry_pages_ * kPageSize == address) {
    entry_pages_ += pages;
    return;
  }
  flush();
  entry_address_ = address;
  entry_pages_ = pages;
  entry_flags_ = flags;
}

void PageFolder::flush() {
  while (entry_pages_ != 0) {
    const uint64_t pages = std::min<uint64_t>(entry_pages_, UINT32_MAX);  // compat_nr_pages has 32 bits
    img::pagemap_entry entry;
    entry.set_vaddr(entry_address_);
    entry.set_compat_nr_pages(static_cast<uint32_t>(pages));
    if (entry_flags_ == kPageInParent) entry.set_in_parent(true);  // what readers before the flags know
    entry.set_flags(entry_flags_);
    entry.set_nr_pages(pages);
    pagemap_->entry(entry);
    entry_address_ += pages * kPageSize;
    entry_pages_ -= pages;
  }
}

void PageFolder::finish() {
  name_left(UINT64_MAX);
  flush();
  pagemap_.reset();
  while (ring_.pending() != 0) ended(ring_.wait());
  if (failed_) throw Error(*failed_);
  out_.reset();
  if (save_pagemaps_) images_.save(dirfd_);
}

void link_parent(int dirfd, const std::string& target) {
  const int parent = ::openat(dirfd, target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (parent < 0)
    throw Refusal("the previous folder " + target + " cannot be opened: " + std::strerror(errno),
                  "give --prev-images-dir relative to the images folder");
  const Fd opened(parent);
  struct stat a {
  }, b{};
  check(::fstat(parent, &a), "stat", target);
  check(::fstat(dirfd, &b), "stat", "the images folder");
  if (a.st_dev == b.st_dev && a.st_ino == b.st_ino)
    throw Refusal("the previous folder " + target + " is the images folder itself",
                  "give each dump a folder of its own");
  unlink_parent(dirfd);
  check(::symlinkat(target.c_str(), dirfd, "parent"), "link", "parent");
}

void unlink_parent(int dirfd) {
  if (::unlinkat(dirfd, "parent", 0) < 0 && errno != ENOENT) throw Error("remove", "the folder's link `parent`", errno);
}

}  // namespace migrate

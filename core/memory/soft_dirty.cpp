#include "core/memory/soft_dirty.h"

#include <algorithm>
#include <charconv>

#include "core/memory/pagemap_word.h"

namespace migrate {
namespace {

/// Larger mappings of which hardly anything exists are left to the end: all their words would have to be read, with the
/// tree stopped (a terabyte: 2 GiB of them).
constexpr uint64_t kVastPages = (uint64_t{8} << 30) / kPageSize;
constexpr uint64_t kVastRatio = 64;

/// Pages present or in swap of each mapping, in the order of smaps.
std::vector<uint64_t> count_resident(std::string_view smaps) {
  std::vector<uint64_t> all;
  while (!smaps.empty()) {
    const size_t newline = smaps.find('\n');
    const std::string_view line = smaps.substr(0, newline);
    smaps.remove_prefix(newline == std::string_view::npos ? smaps.size() : newline + 1);
    if (line.empty()) continue;
    if (!(line.front() >= 'A' && line.front() <= 'Z')) all.push_back(0);
    if (all.empty() || !(line.starts_with("Rss:") || line.starts_with("Swap:"))) continue;
    const size_t digits = std::min(line.find_first_of("0123456789"), line.size());
    uint64_t kib = 0;
    std::from_chars(line.data() + digits, line.data() + line.size(), kib);
    all.back() += kib * 1024 / kPageSize;
  }
  return all;
}

bool is_vast(const Vma& vma) { return vma.range.pages() > kVastPages; }

}  // namespace

bool SoftDirtyTask::memory_is_current() const {
  return visited_ && memory_in_use(files_->memory().get()) &&
         MemoryIdentity::of(parse_stat(files_->read("stat"))) == identity_;
}

bool SoftDirtyTask::visit(std::chrono::milliseconds /*timeout*/, const FaultHook& /*hook*/, Logger& /*log*/) {
  visited_ = false;
  maps_text_.clear();
  files_->attach();
  identity_ = MemoryIdentity::of(parse_stat(files_->read("stat")));
  visited_ = true;
  return true;
}

void SoftDirtyTask::read_mappings() {
  std::string text = files_->read("maps");
  if (text == maps_text_ && !vast_ && !files_->merges_pages()) return;
  const std::string smaps = files_->read("smaps");
  const std::vector<Vma> all = parse_smaps(smaps);
  const std::vector<uint64_t> resident = count_resident(smaps);
  areas_.clear();
  tracked_.clear();
  private_files_.clear();
  left_pages_ = 0;
  vast_ = false;
  for (size_t i = 0; i < all.size(); ++i) {
    const Vma& vma = all[i];
    const bool sparse = is_vast(vma) && resident.at(i) < vma.range.pages() / kVastRatio;
    // A page that KSM merges loses its bit, although it was written since it was sent.
    const bool merged = rules_.leave_mergeable && vma.has(VmFlag::mergeable);
    if (is_private_file(vma) && !sparse) private_files_.push_back(vma);
    if (!is_private_anonymous(vma)) continue;
    vast_ = vast_ || is_vast(vma);
    areas_.push_back(vma);
    if (sparse || merged) {
      left_pages_ += resident.at(i);
    } else {
      tracked_.push_back(vma);
    }
  }
  maps_text_ = std::move(text);
}

void SoftDirtyTask::judge(uint64_t word, uint64_t page, Pages& pages) const {
  using namespace pagemap_word;
  if ((word & (kPresent | kSwapped)) == 0 || (word & (kFile | kGuard)) != 0) return;
  const uint64_t at = page * kPageSize;
  bool written = (word & kSoftDirty) != 0;
  // Reading a page that was thrown away (MADV_DONTNEED) brings in the page of zeros, which has no bit set: another page
  // than the one that was sent. It belongs to nobody alone.
  if (!written && rules_.zero_page_is_new && (word & kPresent) != 0 && (word & kExclusive) == 0) {
    const std::optional<bool> zeros = files_->is_zero_page(word & kFrame, page);
    if (zeros.value_or(false)) return;
    written = !zeros;
  }
  pages.existing.append(at, at + kPageSize);
  if (written) pages.written.append(at, at + kPageSize);
}

/// False: the memory is used no more.
bool SoftDirtyTask::read_pages(PageSet::Range range, Pages& pages) const {
  std::vector<uint64_t> words(std::min<uint64_t>(64 << 10, (range.end - range.start) / kPageSize));
  for (uint64_t page = range.start / kPageSize; page < range.end / kPageSize; page += words.size()) {
    words.resize(std::min<uint64_t>(words.size(), range.end / kPageSize - page));
    if (files_->pagemap(page, words) != words.size()) return false;
    for (size_t i = 0; i < words.size(); ++i) judge(words[i], page + i, pages);
  }
  return true;
}

std::optional<TaskTracker::Scan> SoftDirtyTask::scan(const TrackRules& rules, const FaultHook& /*hook*/) {
  rules_ = rules;
  read_mappings();
  Scan out;
  for (const Vma& vma : areas_) append_area(out.areas, vma);
  out.left_pages = left_pages_;
  Pages pages;
  for (const Vma& vma : tracked_)
    if (!read_pages(range_of(vma), pages)) return std::nullopt;
  add_private_files(
      private_files_, files_->own_root(),
      [&](const Vma& vma) {
        Pages in_file;
        read_pages(range_of(vma), in_file);
        return in_file.existing;
      },
      out);
  // Read, then clear: the bits that are set in between would be lost, so nobody may write now.
  files_->clear_refs();
  if (!memory_is_current()) return std::nullopt;
  out.written = rules.send_written ? std::move(pages.written) : PageSet();
  out.existing = std::move(pages.existing);
  return out;
}

PageSet SoftDirtyTask::clean(const PageSet& known, PageSet& written) const {
  if (!visited_ || !memory_is_current()) return {};
  Pages pages;
  for (const Vma& vma : tracked_)
    if (!read_pages(range_of(vma), pages)) return {};
  PageSet merged;  // since the last scan
  if (rules_.leave_mergeable && files_->merges_pages()) {
    for (const Vma& vma : parse_smaps(files_->read("smaps")))
      if (vma.has(VmFlag::mergeable)) merged.append(vma.range.start.get(), vma.range.end.get());
  }
  written = std::move(pages.written);
  return memory_is_current() ? (known & pages.existing) - written - merged : PageSet();
}

}  // namespace migrate

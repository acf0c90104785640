#include "core/restore/staging.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "core/base/procfs.h"
#include "core/files/paths.h"
#include "core/memory/page_files.h"
#include "core/restore/messages.h"

namespace migrate {
namespace {

struct TargetHeader {
  uint32_t kind;
  uint32_t first;  ///< piece that starts a target and carries the descriptors
  uint64_t id;
};

/// Opened to be mapped; none if there is no regular file. The path is the peer's, and whose right it is opened by is
/// not known yet: what becomes of it, the final images' own open of the same file decides. Other files must not even be
/// opened, since that may have effects.
Fd open_mapped_file(const std::string& path) {
  const Fd root = open_path("/", O_PATH | O_DIRECTORY);
  const Fd there = try_open_below(root.get(), path, O_PATH);
  struct stat st {};
  if (!there || ::fstat(there.get(), &st) != 0 || !S_ISREG(st.st_mode) || on_kernel_file_system(there.get())) return {};
  return Fd(::open(fd_link(there.get()).c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
}

FileKey key_of(int fd) {
  struct stat st {};
  check(::fstat(fd, &st), "stat", "a mapped file");
  return {st.st_dev, st.st_ino};
}

}  // namespace

/// A page that comes alone must not bring a huge one: memory here would exceed the source's.
void Staging::set_up() {
  if (!used_) check(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "turn off huge pages for", "task " + std::to_string(pid_));
  used_ = true;
}

/// Without a file where it is not found here: the final images tell more about it.
StagedArea Staging::area_of_file(const TreeLayout::Area& area, std::map<std::string, Fd>& opened, StagedFiles& files) {
  StagedArea staged{.start = area.start, .end = area.end, .no_reserve = area.no_reserve};
  auto [it, fresh] = opened.try_emplace(area.file);
  if (fresh) it->second = open_mapped_file(area.file);
  if (!it->second) return staged;
  staged.file = key_of(it->second.get());
  staged.base = area.offset - area.start;
  files.emplace(staged.file, it->second.get());
  return staged;
}

bool Staging::follow(const std::vector<TreeLayout::Area>& areas) {
  const bool fresh = !used_;
  set_up();
  std::vector<StagedArea> wanted;
  std::map<std::string, Fd> opened;
  StagedFiles files;
  unstaged_.clear();
  for (const TreeLayout::Area& a : areas) {
    if (a.file.empty()) {
      wanted.push_back({.start = a.start, .end = a.end, .no_reserve = a.no_reserve, .grows_down = a.grows_down});
      continue;
    }
    const StagedArea staged = area_of_file(a, opened, files);
    if (staged.file.inode != 0) {
      wanted.push_back(staged);
    } else {
      unstaged_.push_back({a.start, a.end});
      dropped_ = true;
    }
  }
  return areas_.follow(wanted, files, {}, false) || fresh;
}

bool Staging::settle(const ShellContext& context, const TaskImage& task, const ImageSet& images) {
  const bool fresh = !used_;
  set_up();
  const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(pid_)};
  const auto runs = pagemap_runs(images, pagemap_name(memory));
  std::vector<bool> staged(task.vmas.size());
  for (const size_t i : mappings_to_stage(task.vmas, runs)) staged[i] = true;
  std::vector<StagedArea> wanted;
  std::vector<AddressRange> others;
  StagedFiles files;
  unstaged_.clear();
  for (size_t i = 0; i < task.vmas.size(); ++i) {
    const ImageVma& v = task.vmas[i];
    if (v.kernel_made()) unstaged_.push_back({v.start, v.end});
    const bool file = v.has(kVmaFilePrivate);
    if (v.is_private() && areas_.contains({v.start, v.end})) staged[i] = true;
    if (!staged[i]) {
      others.push_back({v.start, v.end});
      continue;
    }
    StagedArea area{.start = v.start, .end = v.end, .no_reserve = (v.flags & MAP_NORESERVE) != 0};
    if (file) {
      const int fd = context.files.at({v.object, O_RDONLY});
      area.file = key_of(fd);
      area.base = v.pgoff - v.start;
      area.no_access = !runs && v.prot == PROT_NONE;
      files.emplace(area.file, fd);
    } else {
      area.grows_down = (v.flags & MAP_GROWSDOWN) != 0;
    }
    wanted.push_back(area);
    ranges_.push_back({i, v.start, v.bytes(), 0, file, false});
  }
  const bool lost = areas_.follow(wanted, files, others, true) || dropped_;
  if (dropped_) areas_.empty();
  for (StagedRange& s : ranges_) s.staging = areas_.staging(s.final_start);
  return lost || fresh;
}

FillTarget Staging::make_target() {
  FillTarget target;
  target.memory = {MemoryId::Kind::task, static_cast<uint64_t>(pid_)};
  for (const StagedArea& a : areas_.areas())
    target.ranges.push_back({a.start, a.end - a.start, areas_.staging(a.start), a.registered});
  for (const AddressRange& r : unstaged_) target.ranges.push_back({r.start, r.end - r.start, 0, false});
  std::sort(target.ranges.begin(), target.ranges.end(),
            [](const FillTarget::Range& a, const FillTarget::Range& b) { return a.address < b.address; });
  target.userfaultfd = areas_.userfaultfd().dup();
  target.mem = open_path("/proc/self/mem", O_RDWR);
  if (auto self = open_pidfd(::getpid())) target.process = std::move(*self);
  return target;
}

void Staging::discard(const std::vector<AddressRange>& ranges) {
  for (const AddressRange& r : ranges) areas_.discard(r);
}

void Staging::reserve(const std::vector<TreeLayout::Area>& pages) {
  for (const TreeLayout::Area& a : pages) areas_.populate({a.start, a.end}, a.huge_pages);
}

std::vector<StagedRange> Staging::release() {
  areas_.unregister();
  std::vector<AddressRange> own = own_mappings();
  bool welded = false;
  for (const StagedRange& s : ranges_)
    if (!s.file && areas_.weld({s.final_start, s.final_start + s.bytes}, own)) welded = true;
  if (welded) own = own_mappings();
  if (!small_) check(::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), "allow huge pages for", "task " + std::to_string(pid_));
  std::vector<StagedRange> parts;
  for (const StagedRange& s : ranges_) {
    for (const AddressRange& r : split_by_mappings({s.staging, s.staging + s.bytes}, own)) {
      // Access differs between mappings, so that a part has one kind.
      StagedRange part{s.vma, s.final_start + (r.start - s.staging), r.end - r.start, r.start, s.file, false};
      part.no_access = areas_.no_access(part.final_start);
      parts.push_back(part);
    }
  }
  return parts;
}

void Staging::fill_from(const TaskImage& task, PageImages& pages, const PageSet& left_out) {
  // Image files are read into the memory itself: a registered range would make that read wait for us.
  areas_.unregister();
  if (!small_) ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  constexpr uint64_t kHuge = 1u << MADV_HUGEPAGE, kNoHuge = 1u << MADV_NOHUGEPAGE;
  for (const StagedRange& s : ranges_) {
    const uint64_t advice = task.vmas[s.vma].madvise;
    if ((advice & kHuge) != 0) ::madvise(local(s.staging), s.bytes, MADV_HUGEPAGE);
    if ((advice & kNoHuge) != 0) ::madvise(local(s.staging), s.bytes, MADV_NOHUGEPAGE);
  }
  read_pages(places(pages, left_out), "the pages image of task " + std::to_string(pid_));
}

std::vector<PagesIn> Staging::places(PageImages& pages, const PageSet& left_out) const {
  std::vector<PagesIn> parts;
  size_t next = 0;
  const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(pid_)};
  for (StoredPages run : stored_without(pages.locate(pagemap_name(memory)), left_out)) {
    while (run.bytes != 0) {
      while (next < ranges_.size() && ranges_[next].final_start + ranges_[next].bytes <= run.address) ++next;
      if (next == ranges_.size()) return parts;
      const StagedRange& s = ranges_[next];
      // Pages of mappings that are not staged (the vdso's) are left out.
      if (run.address < s.final_start) {
        const uint64_t skip = std::min(run.bytes, s.final_start - run.address);
        run = {run.address + skip, run.bytes - skip, run.fd, run.offset + skip};
        continue;
      }
      if (run.fd < 0) throw Corrupt(pagemap_name(memory), "pages that are needed at once are only named in it");
      const uint64_t n = std::min(run.bytes, s.final_start + s.bytes - run.address);
      auto* to = static_cast<std::byte*>(local(s.staging + (run.address - s.final_start)));
      parts.push_back({run.fd, run.offset, {to, n}});
      run = {run.address + n, run.bytes - n, run.fd, run.offset + n};
    }
  }
  return parts;
}

void send_target(int socket, const FillTarget& target) {
  constexpr size_t kPiece = 2000;
  size_t at = 0;
  do {
    const size_t n = std::min(kPiece, target.ranges.size() - at);
    const TargetHeader header{static_cast<uint32_t>(target.memory.kind), at == 0, target.memory.id};
    std::vector<std::byte> body(sizeof header + n * sizeof(FillTarget::Range));
    std::memcpy(body.data(), &header, sizeof header);
    if (n != 0) std::memcpy(body.data() + sizeof header, target.ranges.data() + at, n * sizeof(FillTarget::Range));
    std::vector<int> fds;
    if (at == 0) {
      fds.push_back(target.mem.get());
      if (target.userfaultfd) fds.push_back(target.userfaultfd.get());
      if (target.userfaultfd && target.process) fds.push_back(target.process.get());
    }
    send_message(socket, Msg::target, 0, body, fds);
    at += n;
  } while (at < target.ranges.size());
}

void add_target_piece(std::vector<FillTarget>& targets, Message& piece) {
  TargetHeader header;
  if (piece.body.size() < sizeof header) throw Error("receive", "a fill target", EBADMSG);
  std::memcpy(&header, piece.body.data(), sizeof header);
  const MemoryId memory{static_cast<MemoryId::Kind>(header.kind), header.id};
  if (header.first != 0) {
    FillTarget fresh;
    fresh.memory = memory;
    if (piece.fds.empty()) throw Error("receive", "a fill target", EBADMSG);
    fresh.mem = std::move(piece.fds[0]);
    if (piece.fds.size() > 1) fresh.userfaultfd = std::move(piece.fds[1]);
    if (piece.fds.size() > 2) fresh.process = std::move(piece.fds[2]);
    targets.push_back(std::move(fresh));
  }
  for (FillTarget& t : targets) {
    if (t.memory != memory) continue;
    const size_t n = (piece.body.size() - sizeof header) / sizeof(FillTarget::Range);
    const size_t at = t.ranges.size();
    t.ranges.resize(at + n);
    if (n != 0) std::memcpy(t.ranges.data() + at, piece.body.data() + sizeof header, n * sizeof(FillTarget::Range));
  }
}

}  // namespace migrate

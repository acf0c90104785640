#include "core/memory/track_task.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>

#include "core/base/features.h"
#include "core/freeze/stopped_tree.h"
#include "core/inject/interrupted_calls.h"
#include "core/inject/userfaultfd_visit.h"
#include "core/memory/track_scan.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace migrate {
namespace {

Fd pidfd_of(pid_t pid) {
  auto fd = open_pidfd(pid);
  if (!fd) throw Error("open a pidfd of task", std::to_string(pid), ESRCH);
  return std::move(*fd);
}

bool same_ranges(const std::vector<Vma>& a, const std::vector<Vma>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Vma& x, const Vma& y) { return x.range == y.range; });
}

}  // namespace

TrackedTask::TrackedTask(pid_t pid) : pid_(pid), proc_(pid), pidfd_(pidfd_of(pid)) {
  proc_.stat();  // fails if the number went to another task between the two
}

TrackedTask::~TrackedTask() {
  try {
    end();
  } catch (const Error&) {  // its memory has gone away
  }
}

bool TrackedTask::ends_within(std::chrono::milliseconds time) const {
  pollfd p{pidfd_.get(), POLLIN, 0};
  return ::poll(&p, 1, static_cast<int>(time.count())) > 0;
}

bool TrackedTask::memory_is_current() const {
  if (!mem_) return false;
  if (!memory_in_use(mem_.get())) return false;
  // Somebody else may still look at the old memory.
  return identity() == identity_;
}

bool TrackedTask::visit(std::chrono::milliseconds timeout, const FaultHook& hook, Logger& log) {
  if (cannot_visit_ && identity() == identity_) return false;
  end();
  cannot_visit_ = false;
  uffd_.reset();
  pagemap_.reset();
  mem_.reset();
  huge_.clear();
  maps_text_.clear();
  const SleepSurvey waits = survey_interruptible(proc_);
  StoppedTree stopped(Pid(pid_), {.timeout = timeout, .descendants = false}, log);
  stops_.push_back({.tid = pid_, .stopped_at = leader_switches()});
  mend_interrupted(stopped.root(), waits);
  const MemoryIdentity now = identity();  // fails if the pid went to another task
  Fd pagemap = proc_.open("pagemap", O_RDONLY);
  Fd mem = proc_.open("mem", O_RDONLY);
  try {
    uffd_ = make_userfaultfd(stopped.root(), kAsyncProtection, log, hook);
  } catch (const Error& e) {
    if (ended()) throw;
    log.warn("task {} is not tracked, its memory is left to the end: {}", pid_, e.what());
    stops_.back().let_go_at = leader_switches();
    cannot_visit_ = true;
    identity_ = now;
    return false;
  }
  stops_.back().let_go_at = leader_switches();
  pagemap_ = std::move(pagemap);
  mem_ = std::move(mem);
  identity_ = now;
  return true;
}

uint64_t TrackedTask::leader_switches() const { return voluntary_switches(proc_.thread(pid_).read("status")); }

// smaps walks all page tables: it is read only when maps has changed.
void TrackedTask::read_mappings() {
  std::string text = proc_.read("maps");
  if (text == maps_text_) return;
  std::vector<Vma> all = parse_smaps(proc_.read("smaps"));
  maps_text_ = same_ranges(all, parse_smaps(text)) ? std::move(text) : std::string();
  private_files_.clear();
  for (const Vma& vma : all)
    if (is_private_file(vma)) private_files_.push_back(vma);
  std::erase_if(all, [](const Vma& vma) { return !is_private_anonymous(vma); });
  mappings_ = std::move(all);
}

bool TrackedTask::register_mapping(const Vma& vma) {
  uffdio_register reg{};
  reg.range = {vma.range.start.get(), vma.range.bytes()};
  reg.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &reg) != 0) return false;
  registered_.append(reg.range.start, reg.range.start + reg.range.len);
  return true;
}

/// A mapping may have been replaced by one of a file just before its range was registered. Such ones are left alone: in
/// file mappings protection leaves markers, over which MADV_GUARD_INSTALL runs for ever (seen on 6.18). Returns where.
PageSet TrackedTask::take_back_registrations() {
  PageSet out;
  if (registered_.empty()) return out;
  const std::string text = proc_.read("maps");
  if (text == maps_text_) return out;
  for (const Vma& vma : parse_smaps(text)) {
    const PageSet::Range range = range_of(vma);
    if (is_private_anonymous(vma) || (registered_ & PageSet(range.start, range.end)).empty()) continue;
    uffdio_range whole{range.start, range.end - range.start};
    ::ioctl(uffd_.get(), UFFDIO_UNREGISTER, &whole);  // fails only where it is gone again
    out.append(range.start, range.end);
  }
  return out;
}

/// The written pages of one mapping; nullopt: it cannot be tracked.
std::optional<PageSet> TrackedTask::scan_mapping(const Vma& vma, const TrackRules& rules, const FaultHook& hook) {
  const PageSet::Range range = range_of(vma);
  PageSet huge, huge_again;
  auto written = scan_and_protect(pagemap_.get(), range, huge);
  if (!written) {
    if (!register_mapping(vma)) return std::nullopt;
    if (hook) hook("mapping registered");
    // New, or moved here. What the first scan protected before it met that part went unreported: all counts as written.
    scan_and_protect(pagemap_.get(), range, huge_again);
    written = rules.new_is_written ? scan_existing(pagemap_.get(), range) : PageSet();
  }
  new_huge_ = new_huge_ | huge | huge_again;
  return written;
}

std::optional<TrackedTask::Scan> TrackedTask::scan(const TrackRules& rules, const FaultHook& hook) {
  read_mappings();
  Scan out;
  PageSet tracked;
  new_huge_.clear();
  registered_.clear();
  for (const Vma& vma : mappings_) {
    append_area(out.areas, vma);
    const auto written = scan_mapping(vma, rules, hook);
    if (!written) continue;
    for (const PageSet::Range& r : written->ranges()) out.written.append(r.start, r.end);
    tracked.append(vma.range.start.get(), vma.range.end.get());
  }
  if (!rules.send_written) out.written.clear();
  huge_ = huge_ | new_huge_;
  tracked = tracked - take_back_registrations();
  out.existing = scan_tracked(pagemap_.get(), {0, kUserEnd}) & tracked;
  add_private_files(
      private_files_, proc_.link("root") != "/",
      [&](PageSet::Range range) { return scan_private_copies(pagemap_.get(), range); }, out);
  if (!memory_is_current()) return std::nullopt;
  return out;
}

PageSet TrackedTask::clean(const PageSet& known) const {
  if (!visited()) return {};
  const PageSet pages = known - scan_not_clean(pagemap_.get(), {0, kUserEnd});
  return memory_is_current() ? pages : PageSet();
}

void TrackedTask::end() {
  if (!uffd_) return;
  uffd_.reset();
  if (!huge_.empty() && !ended() && memory_is_current()) collapse_split_pages();
  pagemap_.reset();
  mem_.reset();
}

void TrackedTask::collapse_split_pages() const {
  PageSet whole;
  const PageSet existing = scan_existing(pagemap_.get(), {0, kUserEnd}, &whole);
  // A hole within would be filled: such a page the task itself has split.
  const PageSet split = (huge_ - whole) & existing;
  for (const PageSet::Range& r : split.ranges()) {
    for (uint64_t at = r.start / kHugePageSize * kHugePageSize; at < r.end; at += kHugePageSize) {
      if (!(PageSet(at, at + kHugePageSize) - existing).empty()) continue;
      const iovec piece{reinterpret_cast<void*>(at), kHugePageSize};
      ::syscall(SYS_process_madvise, pidfd_.get(), &piece, 1, MADV_COLLAPSE, 0);  // a wish
    }
  }
}

}  // namespace migrate

#include "core/memory/track_task.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <set>

#include "core/base/features.h"
#include "core/base/kernel_abi.h"
#include "core/freeze/outside_sharing.h"
#include "core/freeze/stopped_tree.h"
#include "core/inject/userfaultfd_visit.h"
#include "core/memory/huge_pages.h"
#include "core/memory/track_scan.h"
#include "core/task/interrupted_calls.h"

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

TrackedTask::TrackedTask(pid_t pid, std::shared_ptr<const MappingReader> reader,
                         std::shared_ptr<DomainWitnesses> witnesses)
    : pid_(pid), reader_(std::move(reader)), witnesses_(std::move(witnesses)), proc_(pid), pidfd_(pidfd_of(pid)) {
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
  maps_.reset();
  mem_.reset();
  huge_.clear();
  maps_text_.clear();
  witnesses_->for_task(proc_, proc_.status());  // made now, if it is not yet there: it takes a fork
  const std::set<pid_t> self{pid_}, outside = processes_outside(self);  // the preflight has looked at these
  const SleepSurvey waits = survey_interruptible(proc_);
  StoppedTree stopped(Pid(pid_), {.timeout = timeout, .descendants = false}, log);
  stops_.push_back({.tid = pid_, .stopped_at = leader_switches()});
  mend_interrupted(stopped.root(), waits);
  const MemoryIdentity now = identity();  // fails if the pid went to another task
  Fd pagemap = proc_.open("pagemap", O_RDONLY);
  Fd mem = proc_.open("mem", O_RDONLY), maps = proc_.open("maps", O_RDONLY);
  try {
    refuse_outside_sharing({pid_}, self, outside);
    uffd_ = make_userfaultfd(stopped.root(), kAsyncProtection, log, hook, witnesses_.get(), &securebits_);
  } catch (const Refusal&) {  // so will the dump be
    uffd_.reset();
    stops_.back().let_go_at = leader_switches();
    throw;
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
  maps_ = std::move(maps);
  procmap_query query{};
  query.size = sizeof query;
  mapping_queries_ = ::ioctl(maps_.get(), PROCMAP_QUERY, &query) == 0 || errno != ENOTTY;
  unseen_.clear();
  mem_ = std::move(mem);
  identity_ = now;
  return true;
}

uint64_t TrackedTask::leader_switches() const { return voluntary_switches(proc_.thread(pid_).read("status")); }

// Flags are not read where nothing else has changed: perhaps only smaps tells them, which walks all page tables.
void TrackedTask::read_mappings() {
  std::string text = proc_.read("maps");
  if (text == maps_text_) return;
  std::vector<Vma> all = reader_->read(proc_);
  maps_text_ = same_ranges(all, parse_smaps(text)) ? std::move(text) : std::string();
  // The kernel tells a running task's mappings piece by piece: one that changes meanwhile may be told twice.
  uint64_t told = 0;
  std::erase_if(all, [&](const Vma& vma) {
    const bool again = vma.range.start.get() < told;
    told = std::max(told, vma.range.end.get());
    return again;
  });
  private_files_.clear();
  for (const Vma& vma : all)
    if (is_private_file(vma)) private_files_.push_back(vma);
  std::erase_if(all, [](const Vma& vma) { return !is_private_anonymous(vma); });
  mappings_ = std::move(all);
}

bool TrackedTask::register_range(PageSet::Range range) {
  uffdio_register reg{};
  reg.range = {range.start, range.end - range.start};
  reg.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &reg) != 0) return false;
  registered_.append(range.start, range.end);
  unseen_.append(range.start, range.end);
  return true;
}

/// The private anonymous mapping that `address` is in at this moment, if mapping_queries_.
std::optional<PageSet::Range> TrackedTask::anonymous_around(uint64_t address) const {
  std::array<char, 128> name{};  // more than any but a path
  procmap_query query{};
  query.size = sizeof query;
  query.query_addr = address;
  query.vma_name_addr = reinterpret_cast<uint64_t>(name.data());
  query.vma_name_size = name.size();
  // It fails if nothing is there, or what has the long name of a file.
  if (::ioctl(maps_.get(), PROCMAP_QUERY, &query) != 0) return std::nullopt;
  const std::string_view label = name.data();
  if (query.inode != 0 || (query.vma_flags & PROCMAP_QUERY_VMA_SHARED) != 0) return std::nullopt;
  if (label.starts_with("[v") || label == "[uprobes]") return std::nullopt;
  return PageSet::Range{query.vma_start, query.vma_end};
}

/// A mapping of a file that was listed may have been replaced since: what was found there are no copies of the file's
/// pages then, and may lie behind its end, where the receiver cannot put them. (The dynamic linker maps a whole library
/// first, longer than the file, and its parts over that.)
bool TrackedTask::is_still_there(const Vma& vma) const {
  const PageSet::Range range = range_of(vma);
  if (!mapping_queries_) {
    const std::vector<Vma> now = parse_smaps(proc_.read("maps"));
    return std::ranges::any_of(now, [&](const Vma& other) {
      return range_of(other) == range && other.inode == vma.inode && other.offset == vma.offset;
    });
  }
  procmap_query query{};
  query.size = sizeof query;
  query.query_addr = range.start;
  return ::ioctl(maps_.get(), PROCMAP_QUERY, &query) == 0 && query.vma_start == range.start &&
         query.vma_end == range.end && query.vma_offset == vma.offset && query.inode != 0 &&
         (query.vma_flags & PROCMAP_QUERY_VMA_SHARED) == 0;
}

/// Registering part of a mapping splits it, and the task's own mremap(2) of it would fail. It may have changed since it
/// was listed: what is there now is registered, whole, and what a change in between left beside it.
bool TrackedTask::register_mapping(const Vma& vma) {
  const PageSet::Range listed = range_of(vma);
  if (!mapping_queries_) return register_range(listed);
  for (uint64_t at = listed.start; at < listed.end;) {
    const auto now = anonymous_around(at);
    if (!now || !register_range(*now)) return false;
    for (const uint64_t beside : {now->start - 1, now->end}) {
      const auto neighbour = anonymous_around(beside);
      if (neighbour && !registered_.contains(neighbour->start, neighbour->end)) register_range(*neighbour);
    }
    at = now->end;
  }
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
  } else if (const PageSet part = unseen_ & PageSet(range.start, range.end); !part.empty()) {
    // Registered along with another one: new as well.
    if (rules.new_is_written) written = *written | (scan_existing(pagemap_.get(), range) & part);
  }
  unseen_ = unseen_ - PageSet(range.start, range.end);
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
      [&](const Vma& vma) {
        PageSet copies = scan_private_copies(pagemap_.get(), range_of(vma));
        return copies.empty() || is_still_there(vma) ? std::move(copies) : PageSet();
      },
      out);
  if (!memory_is_current()) return std::nullopt;
  return out;
}

PageSet TrackedTask::clean(const PageSet& known, PageSet& written) const {
  if (!visited()) return {};
  written = scan_not_clean(pagemap_.get(), {0, kUserEnd});
  const PageSet pages = known - written;
  return memory_is_current() ? pages : PageSet();
}

void TrackedTask::end() {
  if (!uffd_) return;
  uffd_.reset();
  if (!huge_.empty() && !ended() && memory_is_current()) {
    // A page that is just being used by the kernel (read by us a moment ago, say) is in the way for a moment. Only a
    // wish: there may be no huge page left.
    constexpr int kTries = 10;
    constexpr timespec kBetween{0, 10'000'000};
    for (int i = 0; i < kTries && !collapse_split_pages(pidfd_.get(), pagemap_.get(), huge_); ++i)
      ::nanosleep(&kBetween, nullptr);
  }
  pagemap_.reset();
  mem_.reset();
}

}  // namespace migrate

#include "lazypages/lazy_space.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>

#include "core/base/error.h"
#include "lazypages/patience.h"
#include "lazypages/userfault.h"

namespace migrate {
namespace {

/// What the lock is held for at a time: 35 us.
constexpr uint64_t kMostAtOnce = 64 << 10;
/// Poisoned in one go, while faults of others wait: some 2 ms.
constexpr uint64_t kMostPoisoned = 64 << 20;
/// Zeros put in around a fault on one: a program that walks through fresh memory faults 16 times less.
constexpr uint64_t kZerosAtOnce = 64 << 10;

/// Of shared mappings all is missing, always: so it says where what is mapped.
MissingPages missing_of(const LazyMemory& memory) {
  if (memory.memory != kSharedMappings) return MissingPages(memory.ranges, memory.missing);
  std::vector<uint64_t> places;
  for (const PageRun& run : memory.missing) places.push_back(run.address);
  return MissingPages(memory.ranges, places);
}

}  // namespace

LazySpace::LazySpace(LazyMemory memory, std::shared_ptr<const LazySurroundings> around)
    : memory_(memory.memory),
      around_(std::move(around)),
      missing_(missing_of(memory)),
      guards_(memory.process && !shared() ? GuardScan(memory.process.get()) : GuardScan()),
      record_(around_->record, memory_, memory.userfaultfd.get(), guards_.pagemap(), missing_),
      share_(*around_->room, memory_, false),
      userfaultfd_(std::move(memory.userfaultfd)) {
  count();
}

/// A fork's. Its descriptor is not closed if this fails: the event that told of it is outstanding still.
LazySpace::LazySpace(int userfaultfd, const LazySpace& parent)
    : memory_(parent.memory_),
      around_(parent.around_),
      missing_(parent.missing_.forked()),
      record_(around_->record, memory_, userfaultfd, -1, missing_, &parent.record_),
      share_(*around_->room, memory_, true),
      userfaultfd_(userfaultfd) {
  count();
}

LazySpace::LazySpace(SpacePage& page, std::shared_ptr<const LazySurroundings> around)
    : memory_{static_cast<MemoryId::Kind>(page.kind), page.id},
      around_(std::move(around)),
      record_(around_->record, page, missing_),
      share_(*around_->room, memory_, false),
      userfaultfd_(page.userfaultfd) {
  count();
  guards_ = GuardScan(Fd(page.pagemap));
}

LazySpace::~LazySpace() {
  if (!userfaultfd_ || !around_->record->outlasts()) return;
  userfaultfd_.release();
  guards_.let_go();
}

void LazySpace::resume() {
  const std::lock_guard lock(mutex_);
  read_events();
  if (!userfaultfd_) return;
  wake_all();
  for (const RemoteRange& range : missing_.ranges()) wake(userfaultfd_.get(), range);
}

/// All of user space: also who waits where a mapping has grown. No mapping is below.
void LazySpace::wake_all() const {
  constexpr uint64_t kLowest = 64 << 10;
  wake(userfaultfd_.get(), {RemoteAddr(kLowest), RemoteAddr(kUserEnd)});
}

uint64_t LazySpace::missing_pages() const {
  const std::lock_guard lock(mutex_);
  return shared() ? 0 : missing_.pages();
}

std::vector<MissingRun> LazySpace::missing() const {
  const std::lock_guard lock(mutex_);
  return shared() ? std::vector<MissingRun>() : missing_.runs();
}

void LazySpace::change(const PageChange& change, bool of_event) {
  record_.change(change, of_event, missing_);
  missing_.apply(change);
  count();
}

void LazySpace::settle(RemoteRange range) { change({PageChange::What::settled, range.start.get(), range.end.get()}); }

void LazySpace::unmapped(RemoteRange range) {
  change({PageChange::What::unmapped, range.start.get(), range.end.get()});
}

void LazySpace::close() {
  dead_ = true;
  record_.end();  // first, since its descriptors' numbers may be others' then
  userfaultfd_.reset();
  guards_ = {};
  missing_ = {};
  faults_.clear();
  waited_for_.clear();
  parked_ = false;
  holes_.clear();
  count();
}

void LazySpace::count() {
  constexpr uint64_t kNode = 64;  // of a std::set
  share_.is(SpaceShare::kLeast + missing_.most_bytes() + (waited_for_.size() + faults_.size() + holes_.size()) * kNode);
}

/// As many messages as its forks find room for. Throws Error; `EMFILE`: a fork comes next, and waits.
std::span<const uffd_msg> LazySpace::read_some() {
  const uint64_t fit = around_->room->fit(memory_, share_.bytes());
  if (fit > 0) return record_.read(userfaultfd_.get(), fit);
  std::span<const uffd_msg> messages;
  around_->room->without_descriptors([&] { messages = record_.read(userfaultfd_.get()); });
  return messages;
}

/// All that waits is read and applied. False: a fork waits for a descriptor, or for memory of ours.
bool LazySpace::read_events() {
  SpaceRoom& room = *around_->room;
  const auto fits = [&] { return room.fit(memory_, share_.bytes()) > 0; };
  const bool waited = starved_, too_much = share_.grown() && room.overfull();
  if (too_much) room.refused();
  starved_ = too_much || (!fits() && std::chrono::steady_clock::now() < until_);
  if (starved_) return false;
  for (;;) {
    std::span<const uffd_msg> messages;
    try {
      messages = read_some();
    } catch (const Error& e) {
      if (e.code() != EMFILE && e.code() != ENFILE) throw;
      const bool for_descriptor = fits();
      if (for_descriptor && around_->make_room()) continue;
      room.refused();
      if (!for_descriptor) until_ = std::chrono::steady_clock::now() + SpaceRoom::kTryAgain;
      starved_ = true;
      return false;
    }
    if (messages.empty()) {
      // What they wait for may have been passed over.
      if (waited) let_all_go_on();
      return true;
    }
    for (const uffd_msg& message : messages) apply(message);
  }
}

void LazySpace::apply(const uffd_msg& message) {
  const auto applied = [&](const PageChange& c) {
    change(c, true);
    record_.applied();
    let_go_on({RemoteAddr(c.start), RemoteAddr(c.end)});
  };
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      faults_.push_back(page_floor(message.arg.pagefault.address));
      record_.applied();
      break;
    case UFFD_EVENT_FORK:
      apply_fork(static_cast<int>(message.arg.fork.ufd));
      break;
    case UFFD_EVENT_REMAP: {
      const auto& m = message.arg.remap;
      applied({PageChange::What::moved, m.from, m.from + m.len, m.to});
      let_go_on(range_of(m.to, m.len));
      break;
    }
    case UFFD_EVENT_REMOVE:
      applied({PageChange::What::settled, message.arg.remove.start, message.arg.remove.end});
      break;
    case UFFD_EVENT_UNMAP:
      applied({PageChange::What::unmapped, message.arg.remove.start, message.arg.remove.end});
      break;
    default:
      throw Error("a userfaultfd tells of event " + std::to_string(message.event) + ", which is not known");
  }
}

void LazySpace::apply_fork(int descriptor) {
  // It has the flags that userfaultfd(2) was called with, not those that were set since.
  check(::fcntl(descriptor, F_SETFL, O_NONBLOCK), "set flags of", "a forked userfaultfd");
  check(::fcntl(descriptor, F_SETFD, FD_CLOEXEC), "set flags of", "a forked userfaultfd");
  drop_all_guards();
  const std::shared_ptr<LazySpace> child(new LazySpace(descriptor, *this));
  record_.applied();
  child->record_.counted();
  around_->forked(child);
}

/// Whoever waits for pages of the range that will not come there any more touches them again: it gets what is there
/// now.
void LazySpace::let_go_on(RemoteRange range) {
  const auto first = waited_for_.lower_bound(range.start.get()), last = waited_for_.lower_bound(range.end.get());
  if (first == last) return;
  waited_for_.erase(first, last);
  wake(userfaultfd_.get(), range);
}

void LazySpace::let_all_go_on() {
  for (const uint64_t address : std::exchange(waited_for_, {})) wake(userfaultfd_.get(), range_of(address, kPageSize));
}

LazySpace::Turn LazySpace::serve(std::vector<uint64_t>& wanted) {
  ++hurried_;
  const std::lock_guard lock(mutex_);
  --hurried_;
  if (!userfaultfd_) return Turn::dead;
  read_events();
  const bool answered = answer_faults(wanted);
  if (userfaultfd_ && missing_.unsettled()) settle_moves();
  if (!userfaultfd_) return Turn::dead;
  count();
  return starved_ ? Turn::starved : answered && !asks_on_ ? Turn::idle : Turn::again;
}

void LazySpace::watch(int epoll, uint64_t id, uint32_t events) {
  const std::lock_guard lock(mutex_);
  epoll_event event{.events = events, .data = {.u64 = id}};
  if (userfaultfd_) ::epoll_ctl(epoll, EPOLL_CTL_MOD, userfaultfd_.get(), &event);
}

void LazySpace::find_dead() {
  const std::lock_guard lock(mutex_);
  if (userfaultfd_) settle_moves();
}

/// False: some are left for another try.
bool LazySpace::answer_faults(std::vector<uint64_t>& wanted) {
  while (!faults_.empty()) {
    const uint64_t address = faults_.front();
    if (shared()) {
      if (!answer_shared(address, wanted)) return !userfaultfd_;
    } else if (const auto source = missing_.source_of(address)) {
      waited_for_.insert(address);
      wanted.push_back(*source);
    } else if (!put_zeros(address)) {
      return !userfaultfd_;
    }
    faults_.pop_front();
  }
  return true;
}

/// False: not now, or the memory is dead.
bool LazySpace::put_zeros(uint64_t address) {
  // Not within a range that we know: a mapping of ours that grew, by itself or by mremap(2).
  if (!missing_.registered(address)) change({PageChange::What::grown, address, address + kPageSize});
  for (uint64_t bytes : {missing_.zeros_from(address, kZerosAtOnce), kPageSize}) {
    const FillResult r = zero_pages(userfaultfd_.get(), address, bytes);
    if (r.outcome == Filled::unregistered && bytes > kPageSize) continue;  // not all within one mapping
    if (r.outcome == Filled::changing) {
      read_events();
      return false;
    }
    if (r.outcome == Filled::dead) {
      close();
      return false;
    }
    if (r.outcome == Filled::unregistered) unmapped(range_of(address, kPageSize));
    if (r.outcome != Filled::done) wake(userfaultfd_.get(), range_of(address, kPageSize));
    break;
  }
  return true;
}

bool LazySpace::fill(uint64_t source, std::span<const std::byte> data, std::vector<uint64_t>& wanted) {
  Patience patience;
  const bool hurried = data.size() == kPageSize;
  hurried_ += hurried ? 1 : 0;
  bool passed_over = false;
  while (!passed_over) {
    for (int i = 0; !hurried && hurried_ > 0 && i < 100; ++i) ::sched_yield();
    bool now = true;
    {
      const std::lock_guard lock(mutex_);
      if (!userfaultfd_) break;
      const auto run = missing_.first_of_source(source, data.size());
      if (run) now = put_pages(*run, data.subspan(run->source - source));
      if (userfaultfd_) now = answer_faults(wanted) && now;
      if (now && !run) {
        if (!userfaultfd_ || !missing_.aside(source, data.size())) break;
        now = settle_moves();
        if (!now) read_events();
      }
      passed_over = !now && starved_ && userfaultfd_;
    }
    if (!now && !passed_over) patience.wait();
  }
  hurried_ -= hurried ? 1 : 0;
  return !passed_over;
}

/// If no event is outstanding, none is that moves have overtaken. False: one is.
bool LazySpace::settle_moves() {
  asks_on_ = false;
  const Filled state = probe(userfaultfd_.get());
  if (state == Filled::dead) close();
  if (state != Filled::unregistered || !missing_.unsettled()) return state != Filled::changing;
  if (!settle_doubts()) return false;
  if (userfaultfd_) change({PageChange::What::moves_settled});
  return true;
}

/// Asks the kernel what is registered. False: an event is outstanding, or there is so much to ask that others are to
/// have their turn.
bool LazySpace::settle_doubts() {
  if (shared()) {  // what is not known is shown when all has come
    while (const auto doubt = missing_.doubt())
      change({doubt->unmapped ? PageChange::What::gone : PageChange::What::registered, doubt->range.start.get(),
              doubt->range.end.get()});
    return true;
  }
  constexpr int kQuestions = 256;  // 100 us
  uint64_t pages = UINT64_MAX;     // to ask about at once
  for (int questions = 0; const auto doubt = missing_.doubt(); ++questions) {
    asks_on_ = questions == kQuestions;
    if (asks_on_) return false;
    pages = std::min(pages, doubt->range.pages());
    const RemoteRange range = range_of(doubt->range.start.get(), pages * kPageSize);
    const Filled state = ask_registered(userfaultfd_.get(), range);
    if (state == Filled::changing) return false;
    if (state == Filled::dead) {
      close();
      return true;
    }
    if (state == Filled::exists) {
      change({PageChange::What::registered, range.start.get(), range.end.get()});
      pages *= 2;
    } else if (pages == 1) {
      change({PageChange::What::gone, range.start.get(), range.end.get()});
    } else {
      pages /= 2;
    }
  }
  return true;
}

/// `data` begins with the first page of `run`. False: not now.
bool LazySpace::put_pages(MissingRun run, std::span<const std::byte> data) {
  run.bytes = std::min(run.bytes, kMostAtOnce);
  // A page that is waited for has no guard: it was touched.
  const bool touched = run.bytes == kPageSize && waited_for_.contains(run.address);
  if (!touched && drop_guards(run)) return true;
  const FillResult r = copy_pages(userfaultfd_.get(), run.address, data.first(run.bytes));
  around_->record->step("pages-put");
  if (r.outcome != Filled::unregistered || run.bytes == kPageSize) return came_to(run, r.outcome, r.bytes);
  // Not all within one mapping (mprotect(2) splits them).
  run.bytes = kPageSize;
  const FillResult page = copy_pages(userfaultfd_.get(), run.address, data.first(run.bytes));
  return came_to(run, page.outcome, page.bytes);
}

/// Takes note of what a try to put `run` in came to. False: not now.
bool LazySpace::came_to(MissingRun run, Filled outcome, uint64_t bytes) {
  const RemoteRange page = range_of(run.address, kPageSize);
  switch (outcome) {
    case Filled::done: {
      const RemoteRange range = range_of(run.address, bytes);
      settle(range);
      waited_for_.erase(waited_for_.lower_bound(range.start.get()), waited_for_.lower_bound(range.end.get()));
      return true;
    }
    case Filled::exists:
      settle(page);
      waited_for_.erase(run.address);
      wake(userfaultfd_.get(), page);
      return true;
    case Filled::unregistered:
      unmapped(page);
      waited_for_.erase(run.address);
      wake(userfaultfd_.get(), page);
      return true;
    case Filled::changing:
      read_events();
      return false;
    case Filled::dead:
      close();
      return true;
  }
  return true;
}

/// Pages under a guard were discarded when it was put there. True: there were some.
bool LazySpace::drop_guards(const MissingRun& run) {
  const auto guards = guards_.in(range_of(run.address, run.bytes));
  for (const RemoteRange& guard : guards) settle(guard);
  return !guards.empty();
}

/// For a fork, whose own guards are not known.
void LazySpace::drop_all_guards() {
  // Walking some pages that are present costs less than another call.
  constexpr uint64_t kGap = 128 * kPageSize;
  uint64_t start = 0, end = 0;
  std::vector<RemoteRange> all;
  const auto look = [&] {
    const auto guards = start < end ? guards_.in({RemoteAddr(start), RemoteAddr(end)}) : std::vector<RemoteRange>{};
    all.insert(all.end(), guards.begin(), guards.end());
  };
  for (auto run = missing_.next(0); run; run = missing_.next(end)) {
    if (run->address > end + kGap) {
      look();
      start = run->address;
    }
    end = run->address + run->bytes;
  }
  look();
  for (const RemoteRange& guard : all) settle(guard);
}

bool LazySpace::try_poison() {
  const std::lock_guard lock(mutex_);
  if (userfaultfd_) read_events();  // for the task's other memory, too
  if (shared()) return true;        // the objects are lost
  for (uint64_t bytes = 0; userfaultfd_;) {
    if (bytes > kMostPoisoned) return false;
    if (missing_.unsettled() && !settle_moves()) {
      read_events();
      return false;
    }
    auto run = missing_.next(0);
    if (!run || !userfaultfd_) break;
    run->bytes = std::min(run->bytes, kMostPoisoned);
    bytes += run->bytes;
    FillResult r = poison_pages(userfaultfd_.get(), run->address, run->bytes);
    if (r.outcome == Filled::unregistered && run->bytes > kPageSize) {
      run->bytes = kPageSize;
      r = poison_pages(userfaultfd_.get(), run->address, run->bytes);
    }
    if (!came_to(*run, r.outcome, r.bytes)) return false;
  }
  return true;
}

/// False: not now.
bool LazySpace::unregister_all() {
  for (const RemoteRange& range : missing_.ranges()) {
    if (!userfaultfd_) return true;
    // Where nothing is mapped any more an event says so, or will.
    if (unregister(userfaultfd_.get(), range)) unmapped(range);
  }
  return missing_.ranges().empty();
}

bool LazySpace::try_finish() {
  // So often it may be that something is mapped there which is not ours any more, and no event comes.
  constexpr int kTries = 100;
  const std::lock_guard lock(mutex_);
  if (userfaultfd_ && missing_.unsettled()) settle_moves();
  if (!userfaultfd_) return true;
  const bool all = unregister_all() || ++finish_tries_ > kTries;
  const bool read = read_events();
  for (const uint64_t fault : faults_) wake(userfaultfd_.get(), range_of(fault, kPageSize));
  faults_.clear();
  // Only when no task is left in an event: one that has still to run would wait for ever.
  const Filled state = probe(userfaultfd_.get());
  if (state != Filled::dead && (!all || !read || state != Filled::unregistered)) return false;
  close();
  return true;
}

}  // namespace migrate

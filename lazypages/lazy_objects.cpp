#include "lazypages/lazy_objects.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "core/base/error.h"
#include "core/memory/small_pages.h"
#include "lazypages/userfault.h"

namespace migrate {
namespace {

constexpr std::string_view kWhat = "shared memory whose pages come later";

uint64_t size_of(int fd) {
  struct stat file {};
  check(::fstat(fd, &file), "look at", kWhat);
  return page_ceil(static_cast<uint64_t>(file.st_size));
}

MissingPages missing_of_object(const LazyMemory& memory) {
  if (memory.ranges.size() != 1) throw Corrupt(kWhat, "it has no place");
  const std::array<RemoteRange, 1> all{range_of(0, memory.ranges.front().bytes())};
  return MissingPages(all, memory.missing);
}

PageSet pages_in(const Intervals& set) {
  PageSet pages;
  for (const auto& [start, end] : set) pages.append(start, end);
  return pages;
}

}  // namespace

LazyObject::LazyObject(LazyMemory memory, std::shared_ptr<LazyRecord> record)
    : around_(std::move(record)),
      id_(memory.memory.id),
      base_(memory.ranges.empty() ? 0 : memory.ranges.front().start.get()),
      file_(std::move(memory.userfaultfd)),
      missing_(missing_of_object(memory)) {
  bytes_ = size_of(file_.get());
  if (bytes_ != memory.ranges.front().bytes()) throw Corrupt(kWhat, "it has another size");
  map();
  const PageSet announced = pages_of(memory.missing);
  BlockPages blocks = split_by_blocks(announced);
  held_pages_ = std::move(blocks.first);
  // As long as a block has a hole, or a page of it is held, nobody makes a huge page of it.
  huge_ = are_huge(announced);
  hold_pages();
  for (const PageSet::Range& r : blocks.rest.ranges()) allocate(r.start, r.end);
  forget(0, bytes_);
  record_.emplace(around_, SpaceRecord::Object{id_, base_, bytes_}, file_.get(), held_.get(), missing_);
}

LazyObject::LazyObject(SpacePage& page, std::shared_ptr<LazyRecord> record, const Intervals& announced)
    : around_(std::move(record)),
      id_(page.id),
      base_(page.base),
      bytes_(page.bytes),
      file_(page.userfaultfd),
      held_(page.pagemap),
      held_pages_(split_by_blocks(pages_in(announced)).first) {
  record_.emplace(around_, page, missing_);
  // Cut by lose(), in the middle of which somebody was killed: there is nothing to map.
  if (size_of(file_.get()) < bytes_) {
    drop();
  } else {
    map();
  }
}

LazyObject::~LazyObject() {
  if (mapped_ != nullptr) ::munmap(mapped_, bytes_);
  if (!record_ || !around_->outlasts()) return;
  file_.release();
  held_.release();
}

/// A hole must be told from a page that was written by a task meanwhile: so what is missing is written through a
/// mapping in which holes are faults that nobody answers (EIO).
void LazyObject::map() {
  void* at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), 0);
  if (at == MAP_FAILED) throw Error("map", kWhat, errno);
  mapped_ = static_cast<std::byte*>(at);
  userfaultfd_ = Fd(static_cast<int>(
      check(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), "make", "a userfaultfd for shared memory")));
  uffdio_api api{.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
  check(::ioctl(userfaultfd_.get(), UFFDIO_API, &api), "set up", "a userfaultfd for shared memory");
  uffdio_register order{.range = {reinterpret_cast<uint64_t>(at), bytes_}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  check(::ioctl(userfaultfd_.get(), UFFDIO_REGISTER, &order), "register", kWhat);
  mem_ = open_path("/proc/self/mem", O_RDWR);
}

/// Pages that are allocated may be huge. Such a one cannot be kept from those who must not see it yet (hold_pages()),
/// and a hole that a task punches in a part of it is not one while anybody uses it.
bool LazyObject::are_huge(const PageSet& missing) const {
  if (missing.empty() || makes_huge_pages()) return !missing.empty();
  if (!makes_huge_page_at(file_.get(), missing.ranges().front().start)) return false;
  for (const PageSet::Range& r : missing.ranges()) make_hole(file_.get(), r.start, r.end - r.start);
  return true;
}

/// Holes, in small pages.
void LazyObject::allocate(uint64_t start, uint64_t end) const {
  if (!huge_) {
    // By the restore, as a rule: to try it again would take a third of the time.
    if (!are_allocated(file_.get(), start, end - start)) allocate_pages(file_.get(), start, end - start);
    return;
  }
  // Of a missing page the kernel always makes a small one; that takes twice as long.
  while (start < end) {
    const FillResult r = zero_pages(userfaultfd_.get(), reinterpret_cast<uint64_t>(mapped_) + start, end - start);
    if (r.outcome != Filled::done) throw Error("allocate small pages of", kWhat, EEXIST);
    start += r.bytes;
  }
}

/// MADV_COLLAPSE makes a huge page of a block and shows it to its caller, also the pages that were told of by minor
/// faults only. Not if somebody else has a page of the block, nor (in memory that is registered for missing pages) if
/// one is missing: so the one that is held may become a hole, but is filled last. The pipes wait in a socket, since
/// they need no numbers.
void LazyObject::hold_pages() {
  std::array<int, 2> ends{};
  check(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()), "hold pages of", kWhat);
  held_ = Fd(ends[0]);
  const Fd in(ends[1]);
  // A socket takes some 270 messages, and a pipe 512 MiB: enough for 4 TiB.
  constexpr size_t kPipes = 32;
  for (size_t done = 0, allocated = 0; done < held_pages_.size();) {
    std::vector<Fd> pipes;
    std::vector<int> numbers;
    while (pipes.size() < kPipes && done < held_pages_.size())
      numbers.push_back(pipes.emplace_back(hold_some(done, allocated)).get());
    send_fds(in.get(), std::as_bytes(std::span("", 1)), numbers);
  }
}

/// A pipe that has as many as it takes of what is held, after the first `done`. They are allocated just before.
Fd LazyObject::hold_some(size_t& done, size_t& allocated) const {
  std::array<int, 2> ends{};
  check(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), "hold pages of", kWhat);
  Fd out(ends[0]);
  const Fd in(ends[1]);
  ::fcntl(in.get(), F_SETPIPE_SZ, 256 * static_cast<int>(kPageSize));  // else it has room for 16
  const size_t before = done;
  for (; done < held_pages_.size(); ++done) {
    const uint64_t at = held_pages_[done];
    if (allocated == done) {
      allocate(at, at + kPageSize);
      ++allocated;
    }
    const iovec page{mapped_ + at, kPageSize};
    if (::vmsplice(in.get(), &page, 1, SPLICE_F_NONBLOCK) != static_cast<ssize_t>(kPageSize)) break;
  }
  if (done == before) throw Error("hold pages of", kWhat, errno);
  return out;
}

/// What this process has touched is the program's: it must not look as if we had it (to who looks for memory to free).
void LazyObject::forget(uint64_t offset, uint64_t bytes) const { ::madvise(mapped_ + offset, bytes, MADV_DONTNEED); }

/// With the lock held.
void LazyObject::settle(uint64_t offset, uint64_t bytes) {
  const PageChange change{PageChange::What::settled, offset, offset + bytes};
  record_->change(change, false, missing_);
  missing_.apply(change);
}

/// How many bytes could be written, whole pages; 0: a task has punched a hole where they begin.
uint64_t LazyObject::write_some(uint64_t offset, std::span<const std::byte> data) const {
  constexpr int kTries = 3;
  const auto at = reinterpret_cast<uint64_t>(mapped_) + offset;
  for (int tries = 0;; ++tries) {
    const ssize_t n = ::pwrite(mem_.get(), data.data(), data.size(), static_cast<off_t>(at));
    if (n >= static_cast<ssize_t>(kPageSize)) return page_floor(static_cast<uint64_t>(n));
    if (n < 0 && errno != EIO) throw Error("write", kWhat, errno);
    // EIO, whatever the reason: a hole, or want of memory. This tells (and throws).
    if (!show_page(userfaultfd_.get(), at)) return 0;
    if (tries == kTries) throw Error("write", kWhat, EIO);
  }
}

void LazyObject::put(uint64_t offset, std::span<const std::byte> data) {
  const std::lock_guard lock(mutex_);
  while (const auto run = missing_.first_of_source(offset, data.size())) {
    const uint64_t written = write_some(run->source, data.subspan(run->source - offset, run->bytes));
    // Logged before anybody is shown it: what was written twice was seen by nobody the first time.
    around_->step("object-written");
    settle(run->source, std::max(written, kPageSize));
    around_->step("object-logged");
    forget(run->source, run->bytes);
  }
}

bool LazyObject::awaits(uint64_t offset) const {
  const std::lock_guard lock(mutex_);
  return missing_.source_of(offset).has_value();
}

std::vector<uint64_t> LazyObject::needed_before(uint64_t offset) const {
  std::vector<uint64_t> all;
  if (!std::ranges::binary_search(held_pages_, offset)) return all;
  const uint64_t start = offset / kHugePageSize * kHugePageSize, end = start + kHugePageSize;
  const std::lock_guard lock(mutex_);
  for (uint64_t at = start; at < end;) {
    const auto run = missing_.first_of_source(at, end - at);
    if (!run) break;
    for (uint64_t page = run->source; page < run->source + run->bytes; page += kPageSize) all.push_back(page);
    at = run->source + run->bytes;
  }
  return all;
}

std::vector<MissingRun> LazyObject::missing() const {
  const std::lock_guard lock(mutex_);
  return missing_.runs();
}

uint64_t LazyObject::missing_pages() const {
  const std::lock_guard lock(mutex_);
  return missing_.pages();
}

void LazyObject::drop() {
  const std::lock_guard lock(mutex_);
  if (!missing_.empty()) settle(0, bytes_);
}

void LazyObject::lose() {
  const std::lock_guard lock(mutex_);
  if (missing_.empty()) return;
  // Pages that are missing in a page table cannot be poisoned for those who are forked later.
  check(::ftruncate(file_.get(), 0), "take away", kWhat);
  around_->step("object-cut");
  settle(0, bytes_);
}

void LazyObject::end() {
  const std::lock_guard lock(mutex_);
  record_->end();
  record_.reset();
  file_.reset();
  held_.reset();
}

void LazyObjects::add(std::unique_ptr<LazyObject> object) {
  objects_.push_back(std::move(object));
  std::ranges::sort(objects_, {}, [](const auto& o) { return o->base(); });
}

LazyObject* LazyObjects::of(uint64_t id) const {
  const auto i = std::ranges::find(objects_, id, [](const auto& o) { return o->id(); });
  return i == objects_.end() ? nullptr : i->get();
}

LazyObject* LazyObjects::at(uint64_t place) const {
  auto i = std::ranges::upper_bound(objects_, place, {}, [](const auto& o) { return o->base(); });
  if (i == objects_.begin() || place - (*--i)->base() >= (*i)->bytes()) return nullptr;
  return i->get();
}

bool LazyObjects::awaits(uint64_t place) const {
  const LazyObject* object = at(place);
  return object != nullptr && object->awaits(place - object->base());
}

std::vector<uint64_t> LazyObjects::needed_before(uint64_t place) const {
  const LazyObject* object = at(place);
  if (object == nullptr) return {};
  std::vector<uint64_t> all = object->needed_before(place - object->base());
  for (uint64_t& one : all) one += object->base();
  return all;
}

uint64_t LazyObjects::missing_pages() const {
  uint64_t pages = 0;
  for (const auto& object : objects_) pages += object->missing_pages();
  return pages;
}

}  // namespace migrate

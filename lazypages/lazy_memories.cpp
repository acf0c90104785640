#include "lazypages/lazy_memories.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>

#include "core/base/error.h"
#include "lazypages/patience.h"

namespace migrate {
namespace {

constexpr size_t kSpares = 16;
constexpr std::chrono::milliseconds kDeadWithin{50};

}  // namespace

LazyMemories::LazyMemories(Wanted wanted, std::shared_ptr<LazyRecord> record)
    : wanted_(std::move(wanted)),
      epoll_(check(::epoll_create1(EPOLL_CLOEXEC), "make an epoll descriptor for", "missing pages")),
      filled_(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "make an eventfd for", "missing pages")),
      around_(std::make_shared<LazySurroundings>()),
      looked_for_dead_(std::chrono::steady_clock::now()) {
  around_->record = std::move(record);
  around_->objects = std::make_shared<LazyObjects>();
  around_->room = std::make_shared<SpaceRoom>();
  around_->forked = [this](const Space& child) { add(child); };
  around_->make_room = [this] { return make_room(); };
  // Told once for each write to it, without being read; spaces count from 1.
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.u64 = 0}};
  check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, filled_.get(), &event), "watch", "an eventfd");
  have_spares();
}

LazyMemories::LazyMemories(std::vector<LazyMemory> memories, Wanted wanted, std::shared_ptr<LazyRecord> record)
    : LazyMemories(std::move(wanted), std::move(record)) {
  LazyRecord::Announced announced;
  std::vector<Space> spaces;
  for (LazyMemory& memory : memories) {
    if (memory.memory == kSharedMappings) continue;
    Intervals& set = announced[memory.memory];
    for (const PageRun& run : memory.missing) migrate::add(set, run.address, run.address + run.pages * kPageSize);
    if (memory.memory.kind == MemoryId::Kind::shmem)
      around_->objects->add(std::make_unique<LazyObject>(std::move(memory), around_->record));
  }
  for (LazyMemory& memory : memories)
    if (memory.userfaultfd) spaces.push_back(std::make_shared<LazySpace>(std::move(memory), around_));
  around_->record->adopted(announced);
  for (auto& [memory, set] : announced) memories_[memory].announced = std::move(set);
  allow_announced();
  if (!around_->objects->empty()) memories_[kSharedMappings];
  for (const Space& space : spaces) add(space);
}

LazyMemories::LazyMemories(std::shared_ptr<LazyRecord> record, Wanted wanted)
    : LazyMemories(std::move(wanted), std::move(record)) {
  for (auto& [memory, set] : around_->record->announced()) memories_[memory].announced = std::move(set);
  allow_announced();
  memories_[kSharedMappings];
  std::vector<Space> spaces;
  for (SpacePage* page : around_->record->used()) {
    if ((page->kind & SpacePage::kObject) != 0) {
      around_->objects->add(
          std::make_unique<LazyObject>(*page, around_->record, memories_[{MemoryId::Kind::shmem, page->id}].announced));
    } else {
      spaces.push_back(std::make_shared<LazySpace>(*page, around_));
    }
  }
  for (const Space& space : spaces) add(space);
  for (const Space& space : spaces) space->resume();
}

LazyMemories::~LazyMemories() = default;

void LazyMemories::allow_announced() {
  uint64_t bytes = 0;
  for (const auto& [id, memory] : memories_)
    for (const auto& [start, end] : memory.announced) bytes += end - start;
  allow(SpaceRoom::kMost + bytes / 16 + memories_.size() * 2 * SpaceShare::kLeast);
}

void LazyMemories::add(const Space& space) {
  const std::lock_guard lock(mutex_);
  const uint64_t id = ++last_id_;
  // First: it must not be closed, whatever happens.
  spaces_.emplace(id, space);
  memories_[space->memory()].spaces.emplace(id, space);
  epoll_event event{.events = EPOLLIN, .data = {.u64 = id}};
  check(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, space->userfaultfd(), &event), "watch", "a userfaultfd");
}

/// The first of `memory` (or of all) after space `after`, and its id.
LazyMemories::Space LazyMemories::next_space(std::optional<MemoryId> memory, uint64_t after, uint64_t& id) const {
  const std::lock_guard lock(mutex_);
  const auto& among = memory ? memories_.at(*memory).spaces : spaces_;
  const auto next = among.upper_bound(after);
  if (next == among.end()) return nullptr;
  id = next->first;
  return next->second;
}

void LazyMemories::write(MemoryId memory, uint64_t address, std::span<const std::byte> data) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = memories_.find(memory);
    if (known == memories_.end()) throw Corrupt(name_of(memory), "pages came of a memory that misses none");
    const auto announced = around(known->second.announced, address);
    if (address % kPageSize != 0 || data.empty() || data.size() % kPageSize != 0 ||
        announced == known->second.announced.end() || announced->second - address < data.size())
      throw Corrupt(name_of(memory), "pages came that were not announced as missing");
  }
  if (LazyObject* object = memory.kind == MemoryId::Kind::shmem ? around_->objects->of(memory.id) : nullptr)
    return write_shared(*object, address, data);
  // A fork that is made meanwhile comes after what it was forked from: either that had the pages already, or the fork
  // is met here too.
  uint64_t id = 0;
  bool filled = false, passed_over = false;
  while (const Space space = next_space(memory, id, id)) {
    std::vector<uint64_t> wanted;
    const bool missed = space->missing_pages() != 0;
    passed_over = !space->fill(address, data, wanted) || passed_over;
    filled = filled || (missed && space->missing_pages() == 0);
    ask(memory, wanted);
  }
  note_come(memory, address, data.size(), filled);
  if (!passed_over) return;
  const std::lock_guard lock(mutex_);
  migrate::add(memories_.at(memory).passed_over, address, address + data.size());
}

/// `filled`: they were the last that somebody missed.
void LazyMemories::note_come(MemoryId memory, uint64_t address, uint64_t bytes, bool filled) {
  if (filled) ::eventfd_write(filled_.get(), 1);
  const std::lock_guard lock(mutex_);
  Memory& of = memories_.at(memory);
  of.asked.erase(of.asked.lower_bound(address), of.asked.lower_bound(address + bytes));
  if (of.asked.empty() && !of.passed_over.empty()) ::eventfd_write(filled_.get(), 1);
}

void LazyMemories::write_shared(LazyObject& object, uint64_t offset, std::span<const std::byte> data) {
  const bool missed = object.missing_pages() != 0;
  object.put(offset, data);
  tell_mappings(object.base() + offset, data.size());
  note_come({MemoryId::Kind::shmem, object.id()}, offset, data.size(), missed && object.missing_pages() == 0);
}

/// Whoever is forked meanwhile asks for itself.
void LazyMemories::tell_mappings(uint64_t place, uint64_t bytes) const {
  uint64_t id = 0;
  while (const Space space = next_space(kSharedMappings, id, id)) space->came(place, bytes);
}

/// Of pages that a space asks for, the source's names.
std::pair<MemoryId, uint64_t> LazyMemories::origin_of(MemoryId memory, uint64_t source) const {
  if (memory != kSharedMappings) return {memory, source};
  const LazyObject* object = around_->objects->at(source);
  if (object == nullptr) throw Error("shared memory is mapped that nobody knows");
  return {{MemoryId::Kind::shmem, object->id()}, source - object->base()};
}

void LazyMemories::ask(MemoryId memory, const std::vector<uint64_t>& sources) {
  for (const uint64_t place : sources) {
    const auto [of, source] = origin_of(memory, place);
    {
      const std::lock_guard lock(mutex_);
      if (!memories_.at(of).asked.insert(source).second) continue;
    }
    wanted_(of, source);
  }
}

/// For pages that were passed over, some at a time, when no fork waits.
void LazyMemories::ask_again() {
  constexpr size_t kAtOnce = 64;
  if (!starved_.empty()) return;
  std::map<MemoryId, std::vector<uint64_t>> all;
  {
    const std::lock_guard lock(mutex_);
    for (auto& [id, memory] : memories_) {
      while (!memory.passed_over.empty() && memory.asked.size() + all[id].size() < kAtOnce) {
        const uint64_t page = memory.passed_over.begin()->first;
        cut(memory.passed_over, page, page + kPageSize);
        all[id].push_back(page);
      }
    }
  }
  for (const auto& [id, pages] : all) ask(id, pages);
}

void LazyMemories::turn(uint64_t id) {
  Space space;
  {
    const std::lock_guard lock(mutex_);
    const auto found = spaces_.find(id);
    if (found == spaces_.end()) return;
    space = found->second;
  }
  std::vector<uint64_t> wanted;
  const LazySpace::Turn turn = space->serve(wanted);
  ask(space->memory(), wanted);
  if (turn == LazySpace::Turn::again) again_.insert(id);
  if (turn != LazySpace::Turn::starved) return;
  if (starved_.empty()) until_ = std::chrono::steady_clock::now() + pause_;
  starved_.insert(id);
  space->watch(epoll_.get(), id, 0);
}

void LazyMemories::let_try_again() {
  if (starved_.empty() || std::chrono::steady_clock::now() < until_) return;
  // To try one takes 1.5 us: a tenth of a processor for all.
  constexpr std::chrono::microseconds kEach{15};
  pause_ = std::max<std::chrono::microseconds>(SpaceRoom::kTryAgain, starved_.size() * kEach);
  for (uint64_t id : std::exchange(starved_, {})) {
    const uint64_t wanted = id;
    const Space space = next_space({}, id - 1, id);
    if (space && id == wanted) space->watch(epoll_.get(), id, EPOLLIN);
  }
}

void LazyMemories::serve(std::chrono::milliseconds wait) {
  std::array<epoll_event, 64> events;
  let_try_again();
  const auto longest = std::min(wait, starved_.empty() ? kDeadWithin : SpaceRoom::kTryAgain);
  const auto most = again_.empty() ? longest : std::chrono::milliseconds(0);
  const int n = ::epoll_wait(epoll_.get(), events.data(), events.size(), static_cast<int>(most.count()));
  if (n < 0 && errno != EINTR) throw Error("wait for", "missing pages", errno);
  if (n <= 0 && !again_.empty()) ::sched_yield();
  const std::set<uint64_t> again = std::exchange(again_, {});
  for (int i = 0; i < n; ++i) turn(events[static_cast<size_t>(i)].data.u64);
  for (const uint64_t id : again) turn(id);
  ask_again();
  if (std::chrono::steady_clock::now() - looked_for_dead_ >= kDeadWithin) bury_dead();
}

void LazyMemories::bury_dead() {
  uint64_t id = 0;
  while (const Space space = next_space({}, id, id)) space->find_dead();
  looked_for_dead_ = std::chrono::steady_clock::now();
  std::vector<Space> dead;  // destroyed without the lock
  bool nobody = false;
  {
    const std::lock_guard lock(mutex_);
    for (auto i = spaces_.begin(); i != spaces_.end();) {
      if (i->second->dead()) {
        memories_.at(i->second->memory()).spaces.erase(i->first);
        dead.push_back(std::move(i->second));
        i = spaces_.erase(i);
      } else {
        ++i;
      }
    }
    nobody = !around_->objects->empty() && memories_[kSharedMappings].spaces.empty();
    have_spares();
  }
  if (!nobody) return;
  for (const auto& object : around_->objects->all()) object->drop();
}

/// As many as there is room for.
void LazyMemories::have_spares() {
  while (spares_.size() < kSpares) {
    Fd spare(::fcntl(epoll_.get(), F_DUPFD_CLOEXEC, 0));
    if (!spare) return;
    spares_.push_back(std::move(spare));
  }
}

bool LazyMemories::make_room() {
  const std::lock_guard lock(mutex_);
  if (spares_.empty()) return false;
  spares_.pop_back();
  return true;
}

uint64_t LazyMemories::missing_pages() const {
  // One after the other: forks that are made meanwhile come later.
  uint64_t pages = 0, id = 0;
  while (const Space space = next_space({}, id, id)) pages += space->missing_pages();
  return pages + around_->objects->missing_pages();
}

std::map<MemoryId, std::vector<PageRun>> LazyMemories::missing() const {
  std::map<MemoryId, Intervals> sets;
  uint64_t id = 0;
  while (const Space space = next_space({}, id, id)) {
    for (const MissingRun& run : space->missing())
      migrate::add(sets[space->memory()], run.source, run.source + run.bytes);
  }
  for (const auto& object : around_->objects->all()) {
    for (const MissingRun& run : object->missing())
      migrate::add(sets[{MemoryId::Kind::shmem, object->id()}], run.source, run.source + run.bytes);
  }
  std::map<MemoryId, std::vector<PageRun>> all;
  for (const auto& [memory, set] : sets) {
    for (const auto& [start, end] : set) all[memory].push_back({start, (end - start) / kPageSize});
  }
  return all;
}

std::map<MemoryId, std::vector<uint64_t>> LazyMemories::outstanding() const {
  const std::lock_guard lock(mutex_);
  std::map<MemoryId, std::vector<uint64_t>> all;
  for (const auto& [id, memory] : memories_) {
    if (!memory.asked.empty()) all[id] = {memory.asked.begin(), memory.asked.end()};
  }
  return all;
}

size_t LazyMemories::spaces() const {
  const std::lock_guard lock(mutex_);
  return spaces_.size();
}

/// One after the other: a fork that waits for a descriptor gets that of a task whose memory was given back.
void LazyMemories::finish_all(bool poisons) {
  allow(UINT64_MAX);  // what is known will be forgotten
  // Forks may come until their parent is finished, and after it in this order.
  for (Patience patience; spaces() != 0; patience.wait()) {
    uint64_t id = 0;
    while (const Space space = next_space({}, id, id)) {
      if ((poisons && !space->try_poison()) || !space->try_finish()) continue;
      const std::lock_guard lock(mutex_);
      memories_.at(space->memory()).spaces.erase(id);
      spaces_.erase(id);
    }
  }
  // Last: as long as a task is registered somebody must know what it may see.
  for (const auto& object : around_->objects->all()) object->end();
}

void LazyMemories::finish() {
  if (const uint64_t pages = missing_pages(); pages != 0)
    throw Error("the memory is not whole: " + std::to_string(pages) + " pages are missing");
  finish_all(false);
}

bool LazyMemories::try_lose(MemoryId memory) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = memories_.find(memory);
    if (known == memories_.end()) return true;
    known->second.passed_over.clear();
  }
  if (LazyObject* object = memory.kind == MemoryId::Kind::shmem ? around_->objects->of(memory.id) : nullptr) {
    object->lose();
    tell_mappings(object->base(), object->bytes());
  }
  // Who is forked meanwhile comes later in the list.
  uint64_t id = 0;
  bool all = true;
  while (const Space space = next_space(memory, id, id)) {
    all = space->try_poison() && all;
    again_.insert(id);  // what was read meanwhile is to be answered
  }
  if (all) ::eventfd_write(filled_.get(), 1);
  return all;
}

void LazyMemories::poison() {
  for (const auto& object : around_->objects->all()) object->lose();
  uint64_t id = 0;
  while (const Space space = next_space({}, id, id)) space->try_poison();  // before any is given back
  finish_all(true);
}

}  // namespace migrate

#include "tests/core/soft_dirty_model.h"

#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace migrate {
namespace {

constexpr uint64_t kFirst = 0x1000'0000 / kPageSize, kPages = 2048, kTable = 512;
/// A reservation that is too large to be looked through.
constexpr uint64_t kVastFirst = 0x1000'0000'0000 / kPageSize, kVastPages = (uint64_t{1} << 40) / kPageSize;
constexpr uint64_t kZeroFrame = 7, kHugeZeroFrames = 512, kOtherFrames = 4096;
constexpr pid_t kRoot = 1, kMostTasks = 5;

off_t offset_of(uint64_t page) { return static_cast<off_t>(page * kPageSize); }

}  // namespace

SoftDirtyModel::SoftDirtyModel(uint64_t seed, Quirks quirks) : random_(seed), quirks_(quirks) {
  auto root = std::make_shared<Task>();
  root->pid = kRoot;
  root->memory = new_memory();
  tasks_.emplace(kRoot, std::move(root));
}

SoftDirtyModel::~SoftDirtyModel() = default;

std::shared_ptr<SoftDirtyModel::Memory> SoftDirtyModel::new_memory() {
  auto m = std::make_shared<Memory>();
  m->contents = Fd(check(::memfd_create("model", MFD_CLOEXEC), "create", "a memfd"));
  check(::ftruncate(m->contents.get(), off_t{1} << 47), "size", "a memfd");
  m->generation = ++generations_;
  map(*m, {kFirst, kFirst + kPages / 2}, false);
  map(*m, {kVastFirst, kVastFirst + kVastPages}, false);
  return m;
}

void SoftDirtyModel::run(uint64_t steps) {
  for (uint64_t i = 0; i < steps && paused_ == 0; ++i) {
    auto at = tasks_.begin();
    std::advance(at, below(tasks_.size()));
    const std::shared_ptr<Task> task = at->second;
    step(*task);
  }
}

SoftDirtyModel::Piece SoftDirtyModel::piece() {
  const uint64_t pages = 1 + below(below(8) == 0 ? 600 : 24);
  const uint64_t start = kFirst + below(kPages - pages);
  return {start, start + pages};
}

// Weights: mostly writes.
void SoftDirtyModel::step(Task& task) {
  Memory& m = *task.memory;
  const Piece p = piece();
  switch (below(40)) {
    case 0:
    case 1:
      return map(m, p, false);
    case 2:
      return map(m, p, true);
    case 3:
    case 4:
      return move(m, p, kFirst + below(kPages - (p.end - p.start)));
    case 5:
      return cut(m, p);
    case 6:
    case 7:
    case 8:
      return drop(m, p);
    case 9:
    case 10:
      for (uint64_t page = p.start; page < p.end; ++page) touch(m, page, false);
      return;
    case 11:
      return look_at_huge(m);
    case 12:
      return collapse(m);
    case 13:
      for (auto at = m.pages.lower_bound(p.start); at != m.pages.end() && at->first < p.end; ++at)
        if (at->second.kind == Page::Kind::anonymous && !at->second.pinned) at->second.kind = Page::Kind::swapped;
      return;
    case 14:  // mprotect(2): areas become one, and the kernel forgets that one of them was new (before 6.19)
      for (auto& [start, area] : m.areas) area.dirty = area.dirty && below(2) == 0;
      return;
    case 15:
      if (quirks_.merges_pages) merge_pages(m);
      return;
    case 16:
      touch(m, p.start, true);
      if (const auto at = m.pages.find(p.start); at != m.pages.end()) at->second.pinned = true;
      return;
    case 17:
      for (auto& [page, state] : m.pages) state.pinned = state.pinned && below(2) == 0;
      return;
    case 18:
      if (below(6) == 0) fork(task);
      return;
    case 19:
      if (below(10) == 0 && task.pid != kRoot) exit(task);
      return;
    case 20:
      if (below(20) != 0) return;
      m.dead = true;  // exec
      check(::ftruncate(m.contents.get(), 0), "empty", "a memfd");
      task.memory = new_memory();
      return;
    case 21:
      return touch(m, kVastFirst + below(kVastPages), true);
    case 22:  // a device writes
      for (auto& [page, state] : m.pages) {
        const uint64_t value = random_();
        if (state.pinned)
          pwrite_full(m.contents.get(), std::as_bytes(std::span(&value, 1)), page * kPageSize, "memory");
      }
      return;
    default:
      for (uint64_t i = below(12); i > 0; --i) touch(m, kFirst + below(kPages), true);
  }
}

const SoftDirtyModel::Area* SoftDirtyModel::area_at(const Memory& m, uint64_t page) {
  auto after = m.areas.upper_bound(page);
  if (after == m.areas.begin()) return nullptr;
  const Area& area = std::prev(after)->second;
  return page < area.end ? &area : nullptr;
}

void SoftDirtyModel::touch(Memory& m, uint64_t page, bool write) {
  const Area* area = area_at(m, page);
  if (area == nullptr) return;
  const auto [at, absent] = m.pages.try_emplace(page);
  Page& state = at->second;
  if (absent) state.kind = area->file ? Page::Kind::file : Page::Kind::zero;
  if (state.kind == Page::Kind::swapped) state.kind = Page::Kind::anonymous;
  if (!write) return;
  state.kind = Page::Kind::anonymous;
  state.dirty = true;
  state.shared = false;
  const uint64_t value = below(4) == 0 ? 0 : random_();
  pwrite_full(m.contents.get(), std::as_bytes(std::span(&value, 1)), page * kPageSize, "memory");
}

/// The huge page of zeros comes in where nothing is.
void SoftDirtyModel::look_at_huge(Memory& m) {
  const uint64_t first = kFirst + below(kPages / kTable) * kTable;
  const Area* area = area_at(m, first);
  if (area == nullptr || area->file || area->end < first + kTable) return;
  drop(m, {first, first + kTable});
  for (uint64_t page = first; page < first + kTable; ++page) m.pages[page] = {.kind = Page::Kind::huge_zero};
}

void SoftDirtyModel::drop(Memory& m, Piece p) {
  m.pages.erase(m.pages.lower_bound(p.start), m.pages.lower_bound(p.end));
  check(::fallocate(m.contents.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset_of(p.start),
                    offset_of(p.end - p.start)),
        "punch", "a memfd");
}

void SoftDirtyModel::cut(Memory& m, Piece p) {
  drop(m, p);
  std::vector<Area> rest;
  for (auto at = m.areas.begin(); at != m.areas.end();) {
    const Area area = at->second;
    if (area.end <= p.start || area.start >= p.end) {
      ++at;
      continue;
    }
    at = m.areas.erase(at);
    for (const auto& [start, end] : {std::pair(area.start, p.start), std::pair(p.end, area.end)}) {
      if (start >= end) continue;
      rest.push_back(area);
      rest.back().start = start;
      rest.back().end = end;
    }
  }
  for (const Area& area : rest) m.areas.emplace(area.start, area);
}

/// A new mapping is dirty as a whole, and with it the neighbour that it becomes one with.
void SoftDirtyModel::map(Memory& m, Piece p, bool file) {
  cut(m, p);
  Area area{.start = p.start, .end = p.end, .dirty = true, .file = file};
  const auto after = m.areas.upper_bound(p.start);
  if (after != m.areas.begin() && !file) {
    const Area before = std::prev(after)->second;
    if (before.end == area.start && !before.file && !before.mergeable && before.start >= kFirst && below(2) == 0) {
      area.start = before.start;
      m.areas.erase(std::prev(after));
    }
  }
  m.areas.emplace(area.start, area);
}

/// mremap(2): each moved page is dirty, the mapping is not.
void SoftDirtyModel::move(Memory& m, Piece from, uint64_t to) {
  const Area* source = area_at(m, from.start);
  if (source == nullptr || from.end > source->end || (from.start < to + (from.end - from.start) && to < from.end))
    return;
  Area area = *source;
  std::map<uint64_t, Page> pages(m.pages.lower_bound(from.start), m.pages.lower_bound(from.end));
  std::map<uint64_t, std::array<std::byte, kPageSize>> contents;
  for (const auto& [page, state] : pages) pread_full(m.contents.get(), contents[page], page * kPageSize, "memory");
  cut(m, from);
  cut(m, {to, to + (from.end - from.start)});
  area.start = to;
  area.end = to + (from.end - from.start);
  area.dirty = false;
  m.areas.emplace(area.start, area);
  for (auto& [page, state] : pages) {
    state.dirty = true;
    if (state.kind == Page::Kind::huge_zero) state.kind = Page::Kind::zero;
    m.pages[page - from.start + to] = state;
    pwrite_full(m.contents.get(), contents[page], (page - from.start + to) * kPageSize, "memory");
  }
}

/// A huge page is made of small ones, and of holes: all of it is dirty.
void SoftDirtyModel::collapse(Memory& m) {
  const uint64_t first = kFirst + below(kPages / kTable) * kTable;
  const Area* area = area_at(m, first);
  const auto some = m.pages.lower_bound(first);
  if (area == nullptr || area->file || area->end < first + kTable || some == m.pages.end() ||
      some->first >= first + kTable)
    return;
  for (uint64_t page = first; page < first + kTable; ++page) m.pages[page] = {.dirty = true};
}

/// KSM: the page becomes one with an equal one, and its bit is lost.
void SoftDirtyModel::merge_pages(Memory& m) {
  for (auto& [start, area] : m.areas) {
    if (!area.file && area.end - area.start < kPages && below(4) == 0) area.mergeable = true;
    if (!area.mergeable) continue;
    for (auto at = m.pages.lower_bound(start); at != m.pages.end() && at->first < area.end; ++at) {
      if (at->second.kind != Page::Kind::anonymous || at->second.pinned || below(2) == 0) continue;
      at->second.dirty = false;
      at->second.shared = true;
    }
  }
}

/// The child has its parent's bits.
void SoftDirtyModel::fork(Task& parent) {
  pid_t pid = kRoot + 1;
  while (tasks_.contains(pid)) ++pid;
  if (pid > kMostTasks) return;
  auto child = std::make_shared<Task>();
  child->pid = pid;
  child->parent = parent.pid;
  child->memory = new_memory();
  child->memory->areas = parent.memory->areas;
  for (auto& [page, state] : parent.memory->pages) {
    state.shared = state.shared || state.kind == Page::Kind::anonymous;
    child->memory->pages[page] = state;
    child->memory->pages[page].pinned = false;
    std::array<std::byte, kPageSize> content;
    pread_full(parent.memory->contents.get(), content, page * kPageSize, "memory");
    pwrite_full(child->memory->contents.get(), content, page * kPageSize, "memory");
  }
  tasks_.emplace(pid, std::move(child));
}

void SoftDirtyModel::exit(Task& task) {
  task.alive = false;
  task.memory->dead = true;
  check(::ftruncate(task.memory->contents.get(), 0), "empty", "a memfd");
  for (auto& [pid, other] : tasks_)
    if (other->parent == task.pid) other->parent = kRoot;
  tasks_.erase(task.pid);
}

// ---- what /proc tells

uint64_t SoftDirtyModel::word(const Memory& m, uint64_t page) const {
  constexpr uint64_t kPresent = uint64_t{1} << 63, kSwap = uint64_t{1} << 62, kFile = uint64_t{1} << 61,
                     kExclusive = uint64_t{1} << 56, kDirty = uint64_t{1} << 55;
  uint64_t word = 0;
  const Area* area = area_at(m, page);
  if (area != nullptr && area->dirty) word |= kDirty;  // holes too
  const auto found = m.pages.find(page);
  if (found == m.pages.end()) return word;
  const Page& state = found->second;
  if (state.dirty) word |= kDirty;
  uint64_t frame = kOtherFrames + page;
  switch (state.kind) {
    case Page::Kind::swapped:
      return word | kSwap | 0x1234;
    case Page::Kind::zero:
      frame = kZeroFrame;
      break;
    case Page::Kind::huge_zero:
      frame = kHugeZeroFrames + page % kTable;
      break;
    case Page::Kind::file:
      word |= kFile;
      break;
    case Page::Kind::anonymous:
      if (!state.shared && !quirks_.no_exclusive_bit) word |= kExclusive;
  }
  return word | kPresent | (quirks_.hidden_frames ? 0 : frame);
}

void SoftDirtyModel::clear_refs(Memory& m) {
  for (auto& [start, area] : m.areas) area.dirty = false;
  for (auto& [page, state] : m.pages) state.dirty = state.pinned;
}

std::string SoftDirtyModel::maps_of(const Task& task, bool details) const {
  std::string text;
  char line[200];
  for (const auto& [start, area] : task.memory->areas) {
    std::snprintf(line, sizeof line, "%lx-%lx rw-p 00000000 %s %s\n", start * kPageSize, area.end * kPageSize,
                  area.file ? "08:01 42" : "00:00 0", area.file ? "                  /usr/lib/file" : "");
    text += line;
    if (!details) continue;
    uint64_t present = 0, swapped = 0;
    const auto& pages = task.memory->pages;
    for (auto at = pages.lower_bound(start); at != pages.end() && at->first < area.end; ++at)
      ++(at->second.kind == Page::Kind::swapped ? swapped : present);
    std::snprintf(line, sizeof line, "Rss:   %lu kB\nSwap:  %lu kB\nSwapPss: %lu kB\nVmFlags: rd wr mr mw me ac%s\n",
                  present * 4, swapped * 4, swapped * 4, area.mergeable ? " mg" : "");
    text += line;
  }
  return text;
}

class SoftDirtyModel::Files final : public SoftDirtyFiles {
 public:
  Files(SoftDirtyModel& model, std::shared_ptr<Task> task) : model_(model), task_(std::move(task)) {}
  std::string read(const std::string& name) const override {
    tick();
    if (!task_->alive) throw Error("read", name, ESRCH);
    if (name != "stat") return model_.maps_of(*task_, name == "smaps");
    std::string text = std::to_string(task_->pid) + " (model) S";
    for (int field = 4; field <= 52; ++field)
      text += field == 28 ? " " + std::to_string(task_->memory->generation) : " 0";
    return text;
  }
  bool own_root() const override { return false; }
  bool ends_within(std::chrono::milliseconds) const override {
    tick();
    return !task_->alive;
  }
  void attach() override {
    tick();
    attached_ = task_->memory;
  }
  size_t pagemap(uint64_t first, std::span<uint64_t> words) const override {
    tick();
    if (attached_->dead) return 0;
    for (size_t i = 0; i < words.size(); ++i) words[i] = model_.word(*attached_, first + i);
    return words.size();
  }
  Fd memory() const override { return attached_->contents.dup(); }
  void clear_refs() const override {
    tick();
    SoftDirtyModel::clear_refs(*task_->memory);
  }
  std::optional<bool> is_zero_page(uint64_t frame, uint64_t page) const override {
    if (frame == 0) return std::nullopt;
    return frame == kZeroFrame || (frame - page % kTable == kHugeZeroFrames);
  }
  bool merges_pages() const override { return model_.quirks_.merges_pages; }

 private:
  /// What the tasks do meanwhile.
  void tick() const { model_.run(model_.below(3)); }

  SoftDirtyModel& model_;
  std::shared_ptr<Task> task_;
  std::shared_ptr<Memory> attached_;
};

class SoftDirtyModel::Backend final : public TrackBackend {
 public:
  explicit Backend(SoftDirtyModel& model) : model_(model) {}
  std::unique_ptr<Pause> pause() override {
    struct Stopped final : Pause {
      explicit Stopped(SoftDirtyModel& m) : model(m) { ++model.paused_; }
      ~Stopped() override { --model.paused_; }
      SoftDirtyModel& model;
    };
    return std::make_unique<Stopped>(model_);
  }
  std::vector<LivingTask> living() override {
    std::vector<LivingTask> all;
    // Parents before children.
    std::vector<pid_t> parents{0};
    for (size_t i = 0; i < parents.size(); ++i) {
      for (const auto& [pid, task] : model_.tasks_) {
        if (task->parent != parents[i]) continue;
        all.push_back({.pid = pid, .parent = task->parent, .image_pid = pid, .image_ppid = task->parent});
        parents.push_back(pid);
      }
    }
    return all;
  }
  std::vector<LivingObject> shared_objects(const std::vector<LivingTask>&) override { return {}; }
  std::unique_ptr<TaskTracker> task(pid_t pid) override {
    const auto found = model_.tasks_.find(pid);
    if (found == model_.tasks_.end()) throw Error("open", "/proc/PID", ENOENT);
    return std::make_unique<SoftDirtyTask>(std::make_unique<Files>(model_, found->second));
  }

 private:
  SoftDirtyModel& model_;
};

std::shared_ptr<TrackBackend> SoftDirtyModel::backend() { return std::make_shared<Backend>(*this); }

std::vector<PageSource> SoftDirtyModel::everything() const {
  std::vector<PageSource> all;
  for (const auto& [pid, task] : tasks_) {
    PageSource source{.memory = {MemoryId::Kind::task, static_cast<uint64_t>(pid)}, .fd = task->memory->contents.dup()};
    for (const auto& [page, state] : task->memory->pages) {
      const bool zeros = state.kind == Page::Kind::zero || state.kind == Page::Kind::huge_zero;
      if (state.kind == Page::Kind::file || (zeros && !quirks_.dumps_zero_pages)) continue;
      source.runs.push_back({page * kPageSize, 1, !area_at(*task->memory, page)->file});
    }
    all.push_back(std::move(source));
  }
  return all;
}

}  // namespace migrate

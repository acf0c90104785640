#include "migrate/session/wire/layout_wire.h"

#include <signal.h>

#include <algorithm>
#include <set>
#include <string>

#include "core/base/error.h"
#include "core/base/proc_values.h"

namespace migrate {
namespace {

constexpr size_t kPartAreas = 50'000;
constexpr size_t kMaxTasks = 100'000;
constexpr size_t kMaxAreas = 4'000'000;
constexpr size_t kMaxObjects = 100'000;
constexpr size_t kMaxMemfdName = 249;  // memfd_create(2)
constexpr size_t kMaxPath = 4096;
constexpr size_t kMaxTexts = 64 << 20;
constexpr uint64_t kMaxOffset = uint64_t{1} << 62;

void require_layout(bool good, const char* why) {
  if (!good) throw Corrupt("the layout from the peer", why);
}

void copy_area(const TreeLayout::Area& area, wire::Layout::Area& out) {
  out.set_start(area.start);
  out.set_end(area.end);
  if (area.huge_pages) out.set_huge_pages(true);
  if (area.no_huge_pages) out.set_no_huge_pages(true);
  if (area.grows_down) out.set_grows_down(true);
  if (area.no_reserve) out.set_no_reserve(true);
  if (area.file.empty()) return;
  out.set_file(area.file);
  out.set_offset(area.offset);
}

wire::Layout::Task* start_task(const TreeLayout::Task& task, wire::Layout& part) {
  wire::Layout::Task* out = part.add_tasks();
  out->set_pid(task.pid);
  out->set_ppid(task.ppid);
  out->set_pgid(task.pgid);
  out->set_sid(task.sid);
  if (task.terminal >= 0) out->set_terminal(static_cast<uint32_t>(task.terminal));
  if (task.exit_signal != SIGCHLD) out->set_exit_signal(static_cast<uint32_t>(task.exit_signal));
  return out;
}

/// What an area or object counts in a part: a text takes the room of many areas.
size_t weight(const std::string& text) { return 1 + text.size() / 32; }

std::vector<wire::Layout> in_parts(const TreeLayout& layout, size_t part_areas) {
  std::vector<wire::Layout> parts(1);
  size_t in_part = 0;
  const auto room = [&](size_t needs) {
    if (in_part + needs <= part_areas) return false;
    parts.back().set_more(true);
    parts.emplace_back();
    in_part = 0;
    return true;
  };
  for (const TreeLayout::Object& object : layout.objects) {
    room(weight(object.name));
    wire::Layout::Object* out = parts.back().add_objects();
    out->set_id(object.id);
    out->set_bytes(object.bytes);
    if (object.memfd) {
      out->set_memfd(true);
      out->set_name(object.name);
    }
    if (object.segment) {
      wire::Layout::Object::Segment& segment = *out->mutable_segment();
      segment.set_key(object.segment->key);
      segment.set_cuid(object.segment->cuid);
      segment.set_cgid(object.segment->cgid);
      segment.set_bytes(object.segment->bytes);
    }
    in_part += weight(object.name);
  }
  for (const TreeLayout::Task& task : layout.tasks) {
    room(1);
    wire::Layout::Task* out = start_task(task, parts.back());
    ++in_part;
    for (const TreeLayout::Area& area : task.areas) {
      if (room(weight(area.file))) out = start_task(task, parts.back());
      copy_area(area, *out->add_areas());
      in_part += weight(area.file);
    }
  }
  return parts;
}

}  // namespace

std::vector<wire::Layout> to_wire(const TreeLayout& layout, uint32_t round) {
  std::vector<wire::Layout> parts = in_parts(layout, kPartAreas);
  for (wire::Layout& part : parts) part.set_round(round);
  return parts;
}

wire::Layout whole(const TreeLayout& layout) { return std::move(in_parts(layout, SIZE_MAX / 2).front()); }

std::vector<wire::Discards> to_wire(std::span<const PageDiscard> discards) {
  std::vector<wire::Discards> parts(1);
  for (const PageDiscard& discard : discards) {
    if (parts.back().runs_size() == kPartDiscards) parts.emplace_back();
    wire::Discards::Run* run = parts.back().add_runs();
    run->set_kind(static_cast<uint32_t>(discard.memory.kind));
    run->set_id(discard.memory.id);
    run->set_address(discard.address);
    run->set_pages(discard.pages);
  }
  parts.back().set_last(true);
  return parts;
}

bool LayoutParts::add(const wire::Layout& part) {
  require_layout(layout_.objects.size() + static_cast<size_t>(part.objects_size()) <= kMaxObjects,
                 "too many shared objects");
  for (const wire::Layout::Object& object : part.objects()) {
    require_layout(object.bytes() % kPageSize == 0 && object.bytes() <= kUserEnd, "a shared object of impossible size");
    require_layout(object.name().size() <= kMaxMemfdName && object.name().find('\0') == std::string::npos,
                   "a memfd with an impossible name");
    require_layout(object.memfd() || object.name().empty(), "a name of what has none");
    texts_ += object.name().size();
    require_layout(texts_ <= kMaxTexts, "too many names");
    layout_.objects.push_back({object.id(), object.bytes(), object.memfd(), object.name()});
    if (!object.has_segment()) continue;
    const wire::Layout::Object::Segment& segment = object.segment();
    require_layout(!object.memfd() && object.id() <= INT32_MAX && segment.bytes() != 0 &&
                       page_ceil(segment.bytes()) == object.bytes(),
                   "an impossible System V segment");
    layout_.objects.back().segment = {segment.key(), segment.cuid(), segment.cgid(), segment.bytes()};
  }
  for (const wire::Layout::Task& task : part.tasks()) add_task(task);
  if (part.more()) return false;
  check();
  return true;
}

void LayoutParts::add_task(const wire::Layout::Task& task) {
  if (layout_.tasks.empty() || layout_.tasks.back().pid != task.pid()) {
    require_layout(layout_.tasks.size() < kMaxTasks, "too many tasks");
    require_layout(task.terminal() < kMaxTerminals, "an impossible terminal");
    const int terminal = task.has_terminal() ? static_cast<int>(task.terminal()) : -1;
    require_layout(task.exit_signal() < NSIG, "an impossible exit signal");
    const int exit_signal = task.has_exit_signal() ? static_cast<int>(task.exit_signal()) : SIGCHLD;
    layout_.tasks.push_back({task.pid(), task.ppid(), task.pgid(), task.sid(), terminal, exit_signal, {}});
  }
  areas_ += static_cast<size_t>(task.areas_size());
  require_layout(areas_ <= kMaxAreas, "too many areas of memory");
  std::vector<TreeLayout::Area>& areas = layout_.tasks.back().areas;
  for (const wire::Layout::Area& area : task.areas()) {
    require_layout(area.start() % kPageSize == 0 && area.end() % kPageSize == 0 && area.start() < area.end() &&
                       area.end() <= kUserEnd && (areas.empty() || areas.back().end <= area.start()),
                   "an area of memory out of order");
    require_layout(area.file().empty() || (area.file().front() == '/' && area.file().size() < kMaxPath &&
                                           area.file().find('\0') == std::string::npos),
                   "a file with an impossible path");
    texts_ += area.file().size();
    require_layout(texts_ <= kMaxTexts, "too many paths");
    require_layout(
        area.offset() % kPageSize == 0 && area.offset() <= kMaxOffset && (area.offset() == 0 || area.has_file()),
        "an impossible offset in a file");
    areas.push_back({area.start(), area.end(), area.huge_pages(), area.no_huge_pages(), area.grows_down(),
                     area.no_reserve(), area.file(), area.offset()});
  }
}

void LayoutParts::check() const {
  require_layout(!layout_.tasks.empty(), "no tasks");
  std::set<pid_t> seen;
  for (const TreeLayout::Task& task : layout_.tasks) {
    require_layout(task.pid > 0 && task.pid <= kMaxPid && task.pgid >= 0 && task.pgid <= kMaxPid && task.sid >= 0 &&
                       task.sid <= kMaxPid,
                   "an impossible pid");
    require_layout(seen.empty() || seen.contains(task.ppid), "a task comes before its parent");
    require_layout(seen.insert(task.pid).second, "a task is in it twice");
  }
  std::set<uint64_t> objects;
  for (const TreeLayout::Object& object : layout_.objects)
    require_layout(objects.insert(object.id).second, "a shared object is in it twice");
}

TreeLayout LayoutParts::take() {
  areas_ = texts_ = 0;
  TreeLayout whole;
  std::swap(whole, layout_);
  return whole;
}

std::vector<PageDiscard> from_wire(const wire::Discards& discards) {
  std::vector<PageDiscard> out;
  out.reserve(static_cast<size_t>(discards.runs_size()));
  for (const wire::Discards::Run& run : discards.runs()) {
    require_layout(run.kind() == 1 || run.kind() == 2, "a memory of an unknown kind");
    require_layout(run.address() % kPageSize == 0 && run.address() <= kUserEnd &&
                       run.pages() <= (kUserEnd - run.address()) / kPageSize,
                   "pages out of range");
    out.push_back({{static_cast<MemoryId::Kind>(run.kind()), run.id()}, run.address(), run.pages()});
  }
  return out;
}

MemoryId from_wire(const wire::MemoryName& name) {
  if (name.kind() != 1 && name.kind() != 2) throw Corrupt("a memory that the peer names", "it is of an unknown kind");
  return {static_cast<MemoryId::Kind>(name.kind()), name.id()};
}

void to_wire(MemoryId memory, wire::MemoryName& name) {
  name.set_kind(static_cast<uint32_t>(memory.kind));
  name.set_id(memory.id);
}

}  // namespace migrate

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "core/restore/shell.h"

namespace migrate {
namespace {

class Packer {
 public:
  void number(uint64_t value) { bytes(std::as_bytes(std::span(&value, 1))); }
  void small(int value) { number(static_cast<uint64_t>(static_cast<int64_t>(value))); }
  void bytes(std::span<const std::byte> b) { out_.insert(out_.end(), b.begin(), b.end()); }
  void text(const std::string& text) {
    number(text.size());
    bytes(as_bytes_of(text));
  }
  Fd seal(const char* name) const {
    Fd fd(check(::memfd_create(name, MFD_CLOEXEC), "make", "a memory file"));
    write_full(fd.get(), out_, "a memory file");
    return fd;
  }

 private:
  std::vector<std::byte> out_;
};

class Unpacker {
 public:
  /// The file is mapped: of one that hundreds of shells get, each reads its own part only.
  explicit Unpacker(int fd) {
    struct stat st {};
    check(::fstat(fd, &st), "stat", "a memory file");
    size_ = static_cast<size_t>(st.st_size);
    if (size_ == 0) return;
    at_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (at_ == MAP_FAILED) throw Error("map", "a memory file", errno);
    rest_ = {static_cast<const std::byte*>(at_), size_};
  }
  ~Unpacker() {
    if (size_ != 0) ::munmap(at_, size_);
  }
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;
  bool empty() const { return rest_.empty(); }
  uint64_t number() {
    uint64_t value = 0;
    const auto b = bytes(sizeof value);
    std::memcpy(&value, b.data(), sizeof value);
    return value;
  }
  int small() { return static_cast<int>(static_cast<int64_t>(number())); }
  /// A count of things of at least one number each, so that it is bounded by what is there.
  uint64_t count() {
    const uint64_t n = number();
    if (n > rest_.size() / sizeof(uint64_t)) throw Corrupt("a packed table", "it is cut short");
    return n;
  }
  std::string text() { return std::string(view()); }
  /// As long as this lives.
  std::string_view view() {
    const auto b = bytes(number());
    return {reinterpret_cast<const char*>(b.data()), b.size()};
  }
  std::span<const std::byte> bytes(uint64_t n) {
    if (n > rest_.size()) throw Corrupt("a packed table", "it is cut short");
    const auto taken = rest_.first(n);
    rest_ = rest_.subspan(n);
    return taken;
  }

 private:
  void* at_ = nullptr;
  size_t size_ = 0;
  std::span<const std::byte> rest_;
};

constexpr uint64_t kHugePages = 1, kNoHugePages = 2, kGrowsDown = 4, kNoReserve = 8;  // flags of an area
constexpr uint64_t kNewSession = 1, kNewGroup = 2, kZombie = 4, kDropTerminal = 8, kBeforeSetsid = 16;  // of a task

void put_areas(Packer& p, const std::vector<TreeLayout::Area>& areas) {
  p.number(areas.size());
  for (const TreeLayout::Area& a : areas) {
    p.number(a.start);
    p.number(a.end);
    p.number((a.huge_pages ? kHugePages : 0) | (a.no_huge_pages ? kNoHugePages : 0) | (a.grows_down ? kGrowsDown : 0) |
             (a.no_reserve ? kNoReserve : 0));
    p.text(a.file);
    p.number(a.offset);
  }
}

std::vector<TreeLayout::Area> get_areas(Unpacker& u) {
  std::vector<TreeLayout::Area> areas(u.count());
  for (TreeLayout::Area& a : areas) {
    a.start = u.number();
    a.end = u.number();
    const uint64_t flags = u.number();
    a.huge_pages = (flags & kHugePages) != 0;
    a.no_huge_pages = (flags & kNoHugePages) != 0;
    a.grows_down = (flags & kGrowsDown) != 0;
    a.no_reserve = (flags & kNoReserve) != 0;
    a.file = u.text();
    a.offset = u.number();
  }
  return areas;
}

/// Whether the image tells of a task or thread that `task` is not, and of nothing else. These are nearly all bytes of a
/// big tree's images.
bool is_of_another(std::string_view name, const TaskNode& task) {
  for (const std::string_view stem : {"core", "mm", "pagemap", "fs", "creds"}) {
    const std::optional<uint32_t> id = id_in_name(name, stem);
    if (!id) continue;
    const auto pid = static_cast<pid_t>(*id);
    return pid != task.pid && std::ranges::find(task.threads, pid) == task.threads.end();
  }
  return false;
}

}  // namespace

Fd pack_images(const ImageSet& images) {
  Packer p;
  // Names first, so that what is passed over is not even touched.
  p.number(images.images().size());
  for (const auto& [name, bytes] : images.images()) {
    p.text(name);
    p.number(bytes.size());
  }
  for (const auto& [name, bytes] : images.images()) p.bytes(bytes);
  return p.seal("migrate-images");
}

ImageSet unpack_images(int fd, const TaskNode* reader) {
  Unpacker u(fd);
  std::vector<std::pair<std::string_view, uint64_t>> index(u.count());
  for (auto& [name, size] : index) {
    name = u.view();
    size = u.number();
  }
  ImageSet images;
  for (const auto& [name, size] : index) {
    const auto bytes = u.bytes(size);
    if (reader == nullptr || !is_of_another(name, *reader))
      images.adopt(std::string(name), {bytes.begin(), bytes.end()});
  }
  if (!u.empty()) throw Corrupt("packed images", "bytes come behind the last");
  return images;
}

Fd pack_table(const std::map<uint32_t, int>& table) {
  Packer p;
  for (const auto& [id, fd] : table) p.number(uint64_t{id} << 32 | static_cast<uint32_t>(fd));
  return p.seal("migrate-descriptors");
}

std::map<uint32_t, int> unpack_table(int fd) {
  Unpacker u(fd);
  std::map<uint32_t, int> table;
  while (!u.empty()) {
    const uint64_t entry = u.number();
    table.emplace(static_cast<uint32_t>(entry >> 32), static_cast<int>(entry & 0xffffffff));
  }
  return table;
}

Fd pack_areas(const std::vector<TreeLayout::Area>& areas) {
  Packer p;
  put_areas(p, areas);
  return p.seal("migrate-areas");
}

std::vector<TreeLayout::Area> unpack_areas(int fd) {
  Unpacker u(fd);
  return get_areas(u);
}

Fd pack_layout(const TreeLayout& layout) {
  Packer p;
  p.number(layout.tasks.size());
  for (const TreeLayout::Task& t : layout.tasks) {
    for (const int id : {t.pid, t.ppid, t.pgid, t.sid, t.terminal, t.exit_signal}) p.small(id);
    put_areas(p, t.areas);
  }
  p.number(layout.objects.size());
  for (const TreeLayout::Object& o : layout.objects) {
    p.number(o.id);
    p.number(o.bytes);
    p.number(o.memfd ? 1 : 0);
    p.text(o.name);
    p.number(o.segment ? 1 : 0);
    if (!o.segment) continue;
    for (const uint64_t value : {uint64_t{o.segment->key}, uint64_t{o.segment->cuid}, uint64_t{o.segment->cgid}})
      p.number(value);
    p.number(o.segment->bytes);
  }
  return p.seal("migrate-layout");
}

TreeLayout unpack_layout(int fd) {
  Unpacker u(fd);
  TreeLayout layout;
  layout.tasks.resize(u.count());
  for (TreeLayout::Task& t : layout.tasks) {
    for (int* id : {&t.pid, &t.ppid, &t.pgid, &t.sid, &t.terminal, &t.exit_signal}) *id = u.small();
    t.areas = get_areas(u);
  }
  layout.objects.resize(u.count());
  for (TreeLayout::Object& o : layout.objects) {
    o.id = u.number();
    o.bytes = u.number();
    o.memfd = u.number() != 0;
    o.name = u.text();
    if (u.number() == 0) continue;
    SegmentMaker& segment = o.segment.emplace();
    for (uint32_t* value : {&segment.key, &segment.cuid, &segment.cgid}) *value = static_cast<uint32_t>(u.number());
    segment.bytes = u.number();
  }
  return layout;
}

Fd pack_resources(const Resources& resources) {
  Packer p;
  p.small(resources.room.floor);
  p.small(resources.room.end);
  p.number(resources.own_ipc ? 1 : 0);
  p.number(resources.files.size());
  for (const auto& [file, fd] : resources.files) {
    p.number(file.id);
    p.small(file.access);
    p.small(fd);
  }
  p.number(resources.shared_memory.size());
  for (const auto& [id, fd] : resources.shared_memory) {
    p.number(id);
    p.small(fd);
  }
  return p.seal("migrate-resources");
}

Resources unpack_resources(int fd) {
  Unpacker u(fd);
  Resources r;
  r.room.floor = u.small();
  r.room.end = u.small();
  r.own_ipc = u.number() != 0;
  for (uint64_t n = u.count(); n > 0; --n) {
    MappedFile file;
    file.id = u.number();
    file.access = u.small();
    r.files.emplace(file, u.small());
  }
  for (uint64_t n = u.count(); n > 0; --n) {
    const uint64_t id = u.number();
    r.shared_memory.emplace(id, u.small());
  }
  return r;
}

Fd pack_discards(std::span<const PageDiscard> discards) {
  Packer p;
  p.number(discards.size());
  for (const PageDiscard& d : discards)
    for (const uint64_t value : {static_cast<uint64_t>(d.memory.kind), d.memory.id, d.address, d.pages})
      p.number(value);
  return p.seal("migrate-discards");
}

std::vector<PageDiscard> unpack_discards(int fd) {
  Unpacker u(fd);
  std::vector<PageDiscard> discards(u.count());
  for (PageDiscard& d : discards) {
    d.memory.kind = static_cast<MemoryId::Kind>(u.number());
    d.memory.id = u.number();
    d.address = u.number();
    d.pages = u.number();
  }
  return discards;
}

Fd pack_reserves(std::span<const PageReserve> pages) {
  Packer p;
  p.number(pages.size());
  for (const PageReserve& r : pages)
    for (const uint64_t value :
         {static_cast<uint64_t>(r.memory.kind), r.memory.id, r.address, r.pages, static_cast<uint64_t>(r.huge_pages)})
      p.number(value);
  return p.seal("migrate-reserves");
}

std::vector<PageReserve> unpack_reserves(int fd) {
  Unpacker u(fd);
  std::vector<PageReserve> pages(u.count());
  for (PageReserve& r : pages) {
    r.memory.kind = static_cast<MemoryId::Kind>(u.number());
    r.memory.id = u.number();
    r.address = u.number();
    r.pages = u.number();
    r.huge_pages = u.number() != 0;
  }
  return pages;
}

Fd pack_pages(const PagesByMemory& pages) {
  Packer p;
  p.number(pages.size());
  for (const auto& [memory, set] : pages) {
    p.number(static_cast<uint64_t>(memory.kind));
    p.number(memory.id);
    p.number(set.ranges().size());
    for (const PageSet::Range& r : set.ranges()) {
      p.number(r.start);
      p.number(r.end);
    }
  }
  return p.seal("migrate-pages");
}

PagesByMemory unpack_pages(int fd) {
  Unpacker u(fd);
  PagesByMemory pages;
  for (uint64_t memories = u.count(); memories > 0; --memories) {
    const auto kind = static_cast<MemoryId::Kind>(u.number());
    PageSet& set = pages[{kind, u.number()}];
    for (uint64_t ranges = u.count(); ranges > 0; --ranges) {
      const uint64_t start = u.number();
      set.append(start, u.number());
    }
  }
  return pages;
}

Fd pack_memories(const std::vector<MemoryId>& memories) {
  Packer p;
  p.number(memories.size());
  for (const MemoryId& m : memories) {
    p.number(static_cast<uint64_t>(m.kind));
    p.number(m.id);
  }
  return p.seal("migrate-memories");
}

std::vector<MemoryId> unpack_memories(int fd) {
  Unpacker u(fd);
  std::vector<MemoryId> memories(u.count());
  for (MemoryId& m : memories) {
    m.kind = static_cast<MemoryId::Kind>(u.number());
    m.id = u.number();
  }
  return memories;
}

Fd pack_threads(const std::vector<pid_t>& threads) {
  Packer p;
  p.number(threads.size());
  for (const pid_t tid : threads) p.small(tid);
  return p.seal("migrate-threads");
}

std::vector<pid_t> unpack_threads(int fd) {
  Unpacker u(fd);
  std::vector<pid_t> threads(u.count());
  for (pid_t& tid : threads) tid = u.small();
  return threads;
}

Fd pack_nodes(const std::vector<TaskNode>& tasks, const std::vector<int>& ends) {
  Packer p;
  p.number(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    const TaskNode& t = tasks[i];
    for (const int value : {t.pid, t.ppid, t.pgid, t.sid, t.parent, t.session_helper, t.join_group, t.group_helper,
                            t.exit_signal, t.terminal, t.terminal_fd, ends[i]})
      p.small(value);
    p.number((t.new_session ? kNewSession : 0) | (t.new_group ? kNewGroup : 0) | (t.zombie ? kZombie : 0) |
             (t.drop_terminal ? kDropTerminal : 0) | (t.before_setsid ? kBeforeSetsid : 0));
  }
  return p.seal("migrate-tasks");
}

std::vector<TaskNode> unpack_nodes(int fd, std::vector<int>& ends) {
  Unpacker u(fd);
  std::vector<TaskNode> tasks(u.count());
  ends.assign(tasks.size(), -1);
  for (size_t i = 0; i < tasks.size(); ++i) {
    TaskNode& t = tasks[i];
    for (int* value : {&t.pid, &t.ppid, &t.pgid, &t.sid, &t.parent, &t.session_helper, &t.join_group, &t.group_helper,
                       &t.exit_signal, &t.terminal, &t.terminal_fd, &ends[i]})
      *value = u.small();
    const uint64_t flags = u.number();
    t.new_session = (flags & kNewSession) != 0;
    t.new_group = (flags & kNewGroup) != 0;
    t.zombie = (flags & kZombie) != 0;
    t.drop_terminal = (flags & kDropTerminal) != 0;
    t.before_setsid = (flags & kBeforeSetsid) != 0;
    t.threads = {t.pid};
    if (t.parent >= static_cast<int>(i)) throw Corrupt("a packed table", "a task comes before its parent");
    if (t.parent >= 0) tasks[static_cast<size_t>(t.parent)].children.push_back(static_cast<int>(i));
  }
  return tasks;
}

Fd pack_sockets(const PeerCredentials& who, std::span<const SocketStep> steps) {
  Packer p;
  for (const uint32_t number : {who.pid, who.uid, who.gid}) p.number(number);
  p.number(who.groups.size());
  for (const uint32_t group : who.groups) p.number(group);
  p.number(steps.size());
  for (const SocketStep& step : steps) {
    p.number(static_cast<uint64_t>(step.kind));
    for (const int value : {step.type, step.backlog, step.socket, step.file}) p.small(value);
    p.text({reinterpret_cast<const char*>(&step.name), step.length});
  }
  return p.seal("migrate-sockets");
}

std::vector<SocketStep> unpack_sockets(int fd, PeerCredentials& who) {
  Unpacker u(fd);
  for (uint32_t* number : {&who.pid, &who.uid, &who.gid}) *number = static_cast<uint32_t>(u.number());
  who.groups.resize(u.count());
  for (uint32_t& group : who.groups) group = static_cast<uint32_t>(u.number());
  std::vector<SocketStep> steps(u.count());
  for (SocketStep& step : steps) {
    step.kind = static_cast<SocketStep::Kind>(u.number());
    for (int* value : {&step.type, &step.backlog, &step.socket, &step.file}) *value = u.small();
    const std::string name = u.text();
    if (name.size() > sizeof step.name) throw Corrupt("a packed table", "an address is too long");
    std::memcpy(&step.name, name.data(), name.size());
    step.length = static_cast<socklen_t>(name.size());
  }
  return steps;
}

}  // namespace migrate

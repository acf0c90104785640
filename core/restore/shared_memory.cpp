#include "core/restore/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "core/memory/page_files.h"

namespace migrate {
namespace {

Fd make_memfd(const std::string& name, uint64_t bytes) {
  Fd fd(check(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING), "create", "memfd '" + name + "'"));
  check(::ftruncate(fd.get(), static_cast<off_t>(bytes)), "set the size of", "memfd '" + name + "'");
  return fd;
}

/// Shared anonymous memory (shown as /dev/zero) has a descriptor only through map_files.
Fd make_object(uint64_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw Error("make shared memory of bytes", std::to_string(bytes), errno);
  const auto start = reinterpret_cast<uint64_t>(at);
  std::array<char, 96> link;
  std::snprintf(link.data(), link.size(), "/proc/self/map_files/%lx-%lx", start, start + bytes);
  Fd fd = open_path(link.data(), O_RDWR);
  ::munmap(at, bytes);
  return fd;
}

Fd make(uint64_t id, const SharedMemory::Wanted& want, IpcRestorer& ipc) {
  if (want.segment) return ipc.make_segment(static_cast<int>(id), *want.segment);
  return want.memfd ? make_memfd(want.name, want.bytes) : make_object(want.bytes);
}

}  // namespace

std::vector<uint64_t> SharedMemory::follow(const std::map<uint64_t, Wanted>& wanted, IpcRestorer& ipc) {
  std::erase_if(objects_, [&](const Object& o) {
    const auto it = wanted.find(o.id);
    const bool stays = it != wanted.end() && it->second.memfd == o.memfd && it->second.name == o.name &&
                       it->second.segment == o.segment;
    if (!stays && o.segment) ipc.remove_segment(static_cast<int>(o.id));
    return !stays;
  });
  std::vector<uint64_t> fresh;
  for (const auto& [id, want] : wanted) {
    const auto it = std::find_if(objects_.begin(), objects_.end(), [id = id](const Object& o) { return o.id == id; });
    if (it == objects_.end()) {
      objects_.push_back({want, id, make(id, want, ipc)});
      fresh.push_back(id);
    } else if (it->bytes < want.bytes) {
      check(::ftruncate(it->fd.get(), static_cast<off_t>(want.bytes)), "grow", "shared memory");
      it->bytes = want.bytes;
    }
  }
  return fresh;
}

void SharedMemory::discard(uint64_t id, uint64_t offset, uint64_t bytes) {
  for (const Object& o : objects_)
    if (o.id == id) punch_hole(o.fd.get(), o.bytes, offset, bytes);
}

std::map<uint64_t, WarmMemfd> SharedMemory::take_memfds() {
  std::map<uint64_t, WarmMemfd> taken;
  for (Object& o : objects_)
    if (o.memfd) taken.emplace(o.id, WarmMemfd{o.name, std::move(o.fd)});
  std::erase_if(objects_, [](const Object& o) { return o.memfd; });
  return taken;
}

std::map<uint64_t, SharedMemory::Wanted> wanted_objects(const std::vector<TaskImage>& tasks) {
  std::map<uint64_t, SharedMemory::Wanted> wanted;
  for (const TaskImage& task : tasks)
    for (const ImageVma& v : task.vmas)
      if (v.has(kVmaAnonShared) && !v.has_file())
        wanted[v.object].bytes = std::max(wanted[v.object].bytes, v.pgoff + v.bytes());
  // Images of CRIU's tell no other sizes.
  for (const TaskImage& task : tasks)
    for (const ext::SharedObject& object : task.task_extra().shared_objects()) {
      const auto known = wanted.find(object.shmid());
      if (known == wanted.end()) continue;
      if (object.bytes() == 0 || object.bytes() % kPageSize != 0 || object.bytes() > kUserSpace)
        throw Corrupt("the images", "the size of shared memory " + std::to_string(object.shmid()) + " is out of range");
      known->second.bytes = object.bytes();
    }
  return wanted;
}

void add_segments(const std::vector<img::ipc_shm_entry>& segments, std::map<uint64_t, SharedMemory::Wanted>& wanted) {
  for (const img::ipc_shm_entry& e : segments) {
    const SegmentMaker maker = maker_of(e);
    if (!wanted.emplace(e.desc().id(), SharedMemory::Wanted{page_ceil(maker.bytes), false, "", maker}).second)
      throw Corrupt("the images", "shared memory " + std::to_string(e.desc().id()) + " stands twice");
  }
}

void check_segments(const std::vector<TaskImage>& tasks, const std::map<uint64_t, SharedMemory::Wanted>& wanted) {
  for (const TaskImage& task : tasks)
    for (const ImageVma& v : task.vmas) {
      if (!v.has(kVmaSysvIpc)) continue;
      const auto it = wanted.find(v.object);
      if (it == wanted.end() || !it->second.segment || v.pgoff > it->second.bytes ||
          v.bytes() > it->second.bytes - v.pgoff)
        throw Corrupt("the images", v.describe() + " is of a System V segment that they do not have");
    }
}

void punch_hole(int fd, uint64_t size, uint64_t offset, uint64_t bytes) {
  if (offset >= size) return;
  check(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(std::min(bytes, size - offset))),
        "give back pages of", "shared memory");
}

void fill_object(PageImages& pages, uint64_t id, int fd, uint64_t bytes) {
  std::vector<std::byte> buffer(1 << 20);
  for (StoredPages run : pages.locate(pagemap_name({MemoryId::Kind::shmem, id}))) {
    if (run.address + run.bytes > page_ceil(bytes)) throw Corrupt("the pagemap of shared memory", "it is too long");
    if (run.fd < 0) throw Corrupt("the pagemap of shared memory", "its pages are only named");
    while (run.bytes != 0) {
      const size_t n = std::min<uint64_t>(run.bytes, buffer.size());
      const std::span<std::byte> part(buffer.data(), n);
      if (pread_full(run.fd, part, run.offset, "a pages image") != n)
        throw Corrupt("the pages image of shared memory", "it is too short");
      // The last page of a memory file may be partly behind its end.
      const size_t inside = std::min<uint64_t>(n, bytes > run.address ? bytes - run.address : 0);
      pwrite_full(fd, part.first(inside), run.address, "shared memory");
      run = {run.address + n, run.bytes - n, run.fd, run.offset + n};
    }
  }
}

}  // namespace migrate

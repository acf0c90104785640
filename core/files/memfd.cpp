#include "core/files/memfd.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include "core/files/paths.h"
#include "core/image/magic.h"
#include "images/memfd.pb.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

namespace migrate {
namespace {
constexpr std::string_view kPrefix = "/memfd:";
constexpr std::string_view kSuffix = " (deleted)";
}  // namespace

uint32_t MemfdDumper::inode_id(const OpenFile& file) {
  const auto [it, fresh] = inodes_.try_emplace(inode_of(file.st), static_cast<uint32_t>(inodes_.size() + 1));
  if (!fresh) return it->second;
  // The link that told what it is may lead elsewhere by now.
  if (file.type() != S_IFREG || ::makedev(file.st.stx_dev_major, file.st.stx_dev_minor) != device_)
    throw Error(file.link + " of task " + std::to_string(file.proc->pid()) + " is something else now");
  Fd readable = reopen(file.ours.get(), O_RDONLY, file.link);
  std::string name = file.link.substr(kPrefix.size());
  if (name.ends_with(kSuffix)) name.resize(name.size() - kSuffix.size());  // the kernel adds it to every memfd
  const uint64_t shmid = file.st.stx_ino;  // unique among all unnamed objects, and known before the dump
  img::memfd_inode_entry inode;
  inode.set_name(name);
  inode.set_uid(file.st.stx_uid);
  inode.set_gid(file.st.stx_gid);
  inode.set_size(file.st.stx_size);
  inode.set_shmid(static_cast<uint32_t>(shmid));
  inode.set_seals(static_cast<uint32_t>(check(::fcntl(readable.get(), F_GET_SEALS), "read the seals of", file.link)));
  inode.set_inode_id(it->second);
  inode.set_mode(file.st.stx_mode);
  context_.images.write("memfd.img", magic::kMemfdInode).entry(inode);
  objects_.push_back({shmid, std::move(readable)});
  return it->second;
}

void MemfdDumper::dump(const OpenFile& file) {
  img::file_entry entry = entry_of(img::fd_types::MEMFD, file.id);
  describe_common(file, *entry.mutable_memfd());
  entry.mutable_memfd()->set_pos(file.info.pos);
  entry.mutable_memfd()->set_inode_id(inode_id(file));
  context_.emit(entry);
}

MemfdRestorer::MemfdRestorer(const ImageSet& images, std::map<uint64_t, WarmMemfd> warm) {
  auto reader = images.read("memfd.img", magic::kMemfdInode);
  img::memfd_inode_entry e;
  while (reader && reader->next(e)) {
    if (e.hugetlb_flag() != 0) throw Refusal("memfd '" + e.name() + "' of huge pages", "dump it with ordinary pages");
    if (e.name().size() > 249 || e.name().find('\0') != std::string::npos)
      throw Corrupt("memfd.img", "a name is too long");
    const std::string what = "memfd '" + e.name() + "'";
    Fd fd;
    if (const auto made = warm.find(e.shmid()); made != warm.end() && made->second.name == e.name()) {
      fd = std::move(made->second.fd);
      warm.erase(made);
      warm_.insert(e.shmid());
    } else {
      fd = Fd(check(::memfd_create(e.name().c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING), "create", what));
    }
    if (e.size() > INT64_MAX) throw Corrupt("memfd.img", "a size is impossible");
    check(::ftruncate(fd.get(), static_cast<off_t>(e.size())), "set the size of", what);
    check(::fchown(fd.get(), e.uid(), e.gid()), "set the owner of", what);
    check(::fchmod(fd.get(), e.has_mode() ? e.mode() & 07777 : 0777), "set the mode of", what);
    const auto id = static_cast<uint32_t>(e.inode_id());
    if (!inodes_.emplace(id, Inode{e.shmid(), static_cast<int>(e.seals()), static_cast<off_t>(e.size())}).second ||
        !by_shmid_.emplace(e.shmid(), std::move(fd)).second)
      throw Corrupt("memfd.img", "an id stands twice");
  }
}

Fd MemfdRestorer::open(const img::memfd_file_entry& entry, int flags) const {
  const auto it = inodes_.find(entry.inode_id());
  if (it == inodes_.end()) throw Corrupt("files.img", "a memfd has no inode in memfd.img");
  return reopen(by_shmid_.at(it->second.shmid).get(), flags, "a memfd");
}

void MemfdRestorer::seal(bool last) const {
  for (const auto& [id, inode] : inodes_) {
    int seals =
        inode.seals & (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC);
    // F_SEAL_FUTURE_WRITE leaves writable mappings alone that exist already; they are made after the first round.
    const bool late = (seals & F_SEAL_FUTURE_WRITE) != 0;
    const int fd = by_shmid_.at(inode.shmid).get();
    if (!last) check(::ftruncate(fd, inode.size), "set the size of", "a memfd");
    if (last && !late) continue;
    if (!last && late) seals &= ~(F_SEAL_SEAL | F_SEAL_FUTURE_WRITE);
    if (seals == 0) continue;
    check(::fcntl(fd, F_ADD_SEALS, seals), "seal", "a memfd");
  }
}

}  // namespace migrate

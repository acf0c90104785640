#include "core/files/memfd.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "core/files/kind.h"
#include "core/files/paths.h"
#include "core/files/status_flags.h"
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
    const Inode inode{e.shmid(), static_cast<int>(e.seals()), static_cast<off_t>(e.size()), e.uid(), e.gid(), e.mode(),
                      e.name()};
    if (!inodes_.emplace(id, inode).second || !by_shmid_.emplace(e.shmid(), std::move(fd)).second)
      throw Corrupt("memfd.img", "an id stands twice");
  }
}

const MemfdRestorer::Inode& MemfdRestorer::inode_of(const img::memfd_file_entry& entry) const {
  const auto it = inodes_.find(entry.inode_id());
  if (it == inodes_.end()) throw Corrupt("files.img", "a memfd has no inode in memfd.img");
  return it->second;
}

bool MemfdRestorer::has_set_ids() const {
  return std::any_of(inodes_.begin(), inodes_.end(),
                     [](const auto& inode) { return (inode.second.mode & (S_ISUID | S_ISGID)) != 0; });
}

void MemfdRestorer::check_set_id(const img::memfd_file_entry& entry, const Holders& holders) const {
  const Inode& inode = inode_of(entry);
  if ((inode.mode & (S_ISUID | S_ISGID)) == 0) return;
  for (const FileCredentials& who : holders)
    if (who.may_set_id(inode.mode, inode.uid, inode.gid)) return;
  throw Refusal("memfd '" + inode.name + "' of user " + std::to_string(inode.uid) + " and group " +
                    std::to_string(inode.gid) + " with set-id bits, which no task that has it open could make",
                "have the program close it");
}

Fd MemfdRestorer::open(const img::memfd_file_entry& entry, int flags) const {
  return reopen(by_shmid_.at(inode_of(entry).shmid).get(), flags, "a memfd");
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

namespace {

class MemfdDump : public DumpKind {
 public:
  explicit MemfdDump(const DumpServices& services) : memfds_(services.memfds) {}
  bool matches(const OpenFile& file) const override {
    return file.type() == S_IFREG && file.link.starts_with(kPrefix) &&
           ::makedev(file.st.stx_dev_major, file.st.stx_dev_minor) == internal_;
  }
  void dump(const OpenFile& file) override { memfds_.dump(file); }
  bool preflight_opens(const OpenFile&) const override { return false; }
  void preflight(const OpenFile&, Preflight&) override {}

 private:
  MemfdDumper& memfds_;
  const dev_t internal_ = internal_shm_device();
};

class MemfdRestore : public RestoreKind {
 public:
  explicit MemfdRestore(const RestoreServices& services) : memfds_(services.memfds) {}
  bool has_checks() const override { return memfds_.has_set_ids(); }
  void check(const UsedFile& file) override { memfds_.check_set_id(file.entry.memfd(), file.holders); }
  Fd open(const UsedFile& file) override {
    const img::memfd_file_entry& e = file.entry.memfd();
    Fd fd = memfds_.open(e, static_cast<int>(e.flags()) & O_ACCMODE);
    set_position(fd.get(), e.pos(), "a memfd");
    return fd;
  }
  void after_gate(std::vector<std::string>& failures) override {
    try {
      memfds_.seal(true);
    } catch (const Error& e) {
      failures.emplace_back(e.what());
    }
  }

 private:
  MemfdRestorer& memfds_;
};

}  // namespace

extern const Kind kMemfd{img::fd_types::MEMFD, facts_of_part<&img::file_entry::has_memfd, &img::file_entry::memfd>,
                         make_dump<MemfdDump>, make_restore<MemfdRestore>};

}  // namespace migrate

#include "core/files/restore_files.h"

#include <algorithm>
#include <set>

#include "core/files/image_tables.h"
#include "core/files/kinds.h"
#include "core/files/memfd.h"
#include "core/files/option_table.h"
#include "core/files/paths.h"
#include "core/files/regular_restore.h"
#include "core/files/status_flags.h"
#include "core/files/task_paths.h"
#include "core/files/unix_socket.h"
#include "core/files/waiting_descriptor.h"
#include "core/image/magic.h"

namespace migrate {

FileOwner RestoreServices::ours() const { return {paths.self().uid, paths.self().gid, {}, {}}; }

struct FileRestorer::Impl {
  const ImageSet& images;
  FileRestoreOptions options;
  Logger& log;
  std::map<uint32_t, img::file_entry> entries;
  FileOwners owners;
  SocketStates socket_states;
  Fd root;
  TaskPaths paths;
  MemfdRestorer memfds;
  RegularRestorer regular;
  std::map<img::fd_types, std::unique_ptr<RestoreKind>> kinds;
  std::map<uint32_t, Fd> files;
  std::map<uint32_t, int> numbers;
  std::map<std::set<uint32_t>, Holders> by_tables;  ///< holders by the tables that have a file

  Impl(const ImageSet& i, const FileRestoreOptions& o, Logger& l, std::map<uint64_t, WarmMemfd> warm)
      : images(i),
        options(o),
        log(l),
        entries(read_file_entries(i)),
        owners(i, o.owners),
        socket_states(i),
        root(o.root_fd >= 0 ? Fd(check(::fcntl(o.root_fd, F_DUPFD_CLOEXEC, 0), "duplicate", "the root folder"))
                            : open_path("/", O_PATH | O_DIRECTORY)),
        paths(root.get(), o.by_root),
        memfds(i, std::move(warm)),
        regular(i, entries, owners, paths, o.terminal) {
    if (!options.make_sockets) options.make_sockets = make_sockets;
    const RestoreServices services{images, options, log, entries, owners, paths, regular, memfds, socket_states};
    for (const Kind* kind : all_kinds()) kinds.emplace(kind->type, kind->restore(services));
    check_all();
  }

  /// Before anything is made.
  void check_all() {
    if (std::ranges::none_of(kinds, [](const auto& kind) { return kind.second->has_checks(); })) return;
    for (const auto& [id, use] : used())
      if (RestoreKind& kind = *kinds.at(use.type); kind.has_checks()) kind.check(file_of(id, use, {}));
  }

  struct Use {
    img::fd_types type;
    std::set<uint32_t> tables;
  };

  /// Any task that has a file may open it.
  const Holders& holders_of(const Use& use) {
    Holders& all = by_tables[use.tables];
    if (!all.empty()) return all;
    if (!options.holders) add_holder(all, paths.self());
    for (const uint32_t table : use.tables) {
      if (!options.holders) break;
      const auto it = options.holders->find(table);
      if (it == options.holders->end()) continue;
      for (const FileCredentials& who : it->second) add_holder(all, who);
    }
    least_rights_first(all);
    return all;
  }

  /// Ids of all files that some task uses.
  std::map<uint32_t, Use> used() const {
    std::map<uint32_t, Use> ids;
    for (const uint32_t table : table_ids(images)) {
      if (options.holders && !options.holders->contains(table)) continue;
      for (const img::fdinfo_entry& e : read_table(images, table)) {
        const auto it = entries.find(e.id());
        if (it == entries.end())
          throw Corrupt(image_name("fdinfo", table), "fd " + std::to_string(e.fd()) + " has no file in files.img");
        if (it->second.type() != e.type())
          throw Corrupt(image_name("fdinfo", table), "fd " + std::to_string(e.fd()) + " is of another type");
        ids.try_emplace(e.id(), Use{e.type(), {}}).first->second.tables.insert(table);
      }
    }
    add_waiting(ids);
    return ids;
  }

  void add_waiting(std::map<uint32_t, Use>& ids) const {
    std::vector<uint32_t> known;
    for (const auto& [id, use] : ids) known.push_back(id);
    hand_on_to_waiting(images, std::move(known), [&](uint32_t socket, uint32_t id) {
      const auto entry = entries.find(id);
      if (entry == entries.end()) throw Corrupt(kSkQueuesImage, "file " + std::to_string(id) + " is not in files.img");
      const auto [it, fresh] = ids.try_emplace(id, Use{entry->second.type(), {}});
      const std::set<uint32_t>& tables = ids.at(socket).tables;
      const size_t before = it->second.tables.size();
      it->second.tables.insert(tables.begin(), tables.end());
      return fresh || it->second.tables.size() != before;
    });
  }

  UsedFile file_of(uint32_t id, const Use& use, std::optional<int64_t> dumped_at_ns) {
    return {id, entries.at(id), holders_of(use), dumped_at_ns};
  }

  void open(const UsedFile& file) {
    if (Fd fd = kinds.at(file.entry.type())->open(file)) keep(file, std::move(fd));
  }

  void keep(const UsedFile& file, Fd fd) {
    RestoreKind& kind = *kinds.at(file.entry.type());
    if (!kind.by_path()) set_status_flags(fd.get(), flags_of(file.entry), "a restored file");
    kind.opened(file, fd.get());
    numbers[file.id] = fd.get();
    files[file.id] = std::move(fd);
  }

  void open_all(std::optional<int64_t> dumped_at_ns) {
    raise_descriptor_limit();
    check_one_terminal(entries);
    const auto ids = used();
    memfds.seal(false);
    open_paths(ids, dumped_at_ns);
    for (const auto& [id, use] : ids)
      if (!kinds.at(use.type)->by_path()) open(file_of(id, use, dumped_at_ns));
    static const Holders kNobody;
    for (const auto& one : kinds)
      for (auto& [id, fd] : one.second->connect()) {
        const auto use = ids.find(id);
        keep({id, entries.at(id), use == ids.end() ? kNobody : holders_of(use->second), dumped_at_ns}, std::move(fd));
      }
    for (const auto& one : kinds) one.second->seal(numbers);
    if (!options.hold_outside) after_gate();
  }

  /// Those of one holder after the other, since taking on rights takes as long as opening a file.
  void open_paths(const std::map<uint32_t, Use>& ids, std::optional<int64_t> dumped_at_ns) {
    std::map<const Holders*, std::vector<UsedFile>> by_holders;
    for (const auto& [id, use] : ids)
      if (kinds.at(use.type)->by_path()) by_holders[&holders_of(use)].push_back(file_of(id, use, dumped_at_ns));
    const TaskPaths::Batch batch(paths);
    for (const auto& files_of : by_holders)
      for (const UsedFile& file : files_of.second) open(file);
  }

  Fd open_wanted(const WantedFile& w) {
    const auto it = entries.find(w.id);
    if (it == entries.end()) throw Corrupt("files.img", "file " + std::to_string(w.id) + " is missing");
    const img::file_entry& e = it->second;
    const bool folder = w.use != WantedFile::Use::mapped;
    if (e.type() == img::fd_types::MEMFD && !folder) {
      memfds.check_set_id(e.memfd(), w.holders);
      return memfds.open(e.memfd(), w.access & O_ACCMODE);
    }
    if (e.type() != img::fd_types::REG)
      throw Corrupt("files.img", "file " + std::to_string(w.id) + " is not one that has a path");
    if (folder) return regular.open_folder(e.reg(), w.holders, w.use == WantedFile::Use::root_folder);
    return regular.open(e.reg(), static_cast<uint32_t>(w.access), w.holders, true);
  }

  std::vector<std::string> after_gate() {
    std::vector<std::string> failures;
    for (const auto& one : kinds) one.second->after_gate(failures);
    return failures;
  }
};

void check_files_restorable(const ImageSet& images, size_t limit) {
  std::set<uint32_t> ids;
  for (const uint32_t table : table_ids(images))
    for (const img::fdinfo_entry& e : read_table(images, table)) ids.insert(e.id());
  for (const QueuedPacket& packet : read_queued_packets(images)) ids.insert(packet.files.begin(), packet.files.end());
  // A coordinator has all of them open at once, and some more while it opens them.
  constexpr size_t kMore = 32;
  if (ids.size() + kMore > limit)
    throw Refusal("the tree has " + std::to_string(ids.size()) +
                      " open files, too many to be restored below our own limit of open files",
                  "raise that of this process (ulimit -Hn)");
  check_one_terminal(read_file_entries(images));
}

FileRestorer::FileRestorer(const ImageSet& images, const FileRestoreOptions& options, Logger& log,
                           std::map<uint64_t, WarmMemfd> warm)
    : impl_(std::make_unique<Impl>(images, options, log, std::move(warm))) {}
FileRestorer::~FileRestorer() = default;

std::vector<Fd> FileRestorer::open_files(const std::vector<WantedFile>& wanted) {
  const TaskPaths::Batch batch(impl_->paths);
  std::vector<Fd> opened;
  opened.reserve(wanted.size());
  for (const WantedFile& w : wanted) opened.push_back(impl_->open_wanted(w));
  return opened;
}

const std::map<uint64_t, Fd>& FileRestorer::shared_objects() { return impl_->memfds.objects(); }
bool FileRestorer::is_warm(uint64_t shmid) const { return impl_->memfds.is_warm(shmid); }
void FileRestorer::open_all(std::optional<int64_t> dumped_at_ns) { impl_->open_all(dumped_at_ns); }
const std::map<uint32_t, int>& FileRestorer::opened() const { return impl_->numbers; }
std::vector<std::string> FileRestorer::after_gate() { return impl_->after_gate(); }

}  // namespace migrate

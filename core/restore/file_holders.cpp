#include "core/restore/file_holders.h"

#include <set>

#include "core/image/magic.h"
#include "images/fdinfo.pb.h"

namespace migrate {
namespace {

/// Threads may differ, and share what they have open.
Holders credentials_of_threads(const TaskImage& task, const RootFolders& roots) {
  Holders all;
  const auto root = roots.find(task.fs.root_id());
  for (const img::core_entry& core : task.cores) {
    if (!core.thread_core().has_creds()) continue;
    FileCredentials who = credentials_of(core.thread_core().creds());
    if (root != roots.end()) who.root = root->second;
    add_holder(all, who);
  }
  return all;
}

void want(std::map<MappedFile, WantedFile>& all, uint64_t id, int access, WantedFile::Use use, const Holders& holders) {
  if (id == 0 || id > UINT32_MAX) throw Corrupt("the memory images", "a file id is out of range");
  WantedFile& file = all.try_emplace({id, access}).first->second;
  file.id = static_cast<uint32_t>(id);
  file.access = access;
  file.use = use;
  for (const FileCredentials& who : holders) add_holder(file.holders, who);
}

}  // namespace

RootFolders root_folders(const std::vector<TaskImage>& tasks, const ImageSet& images) {
  std::set<uint32_t> wanted;
  for (const TaskImage& task : tasks)
    if (task.fs.root_id() != 0) wanted.insert(task.fs.root_id());
  RootFolders roots;
  auto reader = images.read("files.img", magic::kFiles);
  img::file_entry e;
  while (!wanted.empty() && reader && reader->next(e)) {
    if (e.type() != img::fd_types::REG || wanted.erase(e.id()) == 0) continue;
    std::string path = e.reg().name();
    while (path.size() > 1 && path.ends_with('/')) path.pop_back();
    if (path != "/") roots.emplace(e.id(), std::move(path));
  }
  return roots;
}

std::map<uint32_t, Holders> table_holders(const std::vector<TaskImage>& tasks, const RootFolders& roots) {
  std::map<uint32_t, Holders> tables;
  for (const TaskImage& task : tasks)
    for (const FileCredentials& who : credentials_of_threads(task, roots)) add_holder(tables[task.ids.files_id()], who);
  return tables;
}

UserIds ids_of(const std::vector<TaskImage>& tasks) {
  UserIds ids;
  for (const TaskImage& task : tasks)
    for (const img::core_entry& core : task.cores) {
      if (!core.thread_core().has_creds()) continue;
      const img::creds_entry& c = core.thread_core().creds();
      ids.uids.insert({c.uid(), c.euid(), c.suid(), c.fsuid()});
      ids.gids.insert({c.gid(), c.egid(), c.sgid(), c.fsgid()});
      ids.gids.insert(c.groups().begin(), c.groups().end());
    }
  return ids;
}

std::map<MappedFile, WantedFile> wanted_files(const std::vector<TaskImage>& tasks, const RootFolders& roots) {
  std::map<MappedFile, WantedFile> all;
  for (const TaskImage& task : tasks) {
    const Holders holders = credentials_of_threads(task, roots);
    want(all, task.mm.exe_file_id(), O_RDONLY, WantedFile::Use::mapped, holders);
    want(all, task.fs.cwd_id(), kWorkFolder, WantedFile::Use::work_folder, holders);
    if (task.fs.root_id() != 0) want(all, task.fs.root_id(), kRootFolder, WantedFile::Use::root_folder, holders);
    for (const ImageVma& v : task.vmas)
      if (v.has_file()) want(all, v.object, v.open_flags, WantedFile::Use::mapped, holders);
  }
  return all;
}

}  // namespace migrate

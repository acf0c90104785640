#include "migrate/session/destination/destination_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "core/files/early_look.h"

namespace migrate {
namespace {

struct Asked {
  const wire::Check::File* file;
  const wire::Check::Use* use;
};

FileCredentials from_wire(const wire::Check::Credentials& c) {
  FileCredentials who{c.uid(), c.gid(), {c.groups().begin(), c.groups().end()}, c.capabilities()};
  sort_once(who.groups);
  return who;
}

FileFacts facts_of(const wire::Check::File& file, uint32_t flags) {
  FileFacts facts{.name = file.path()};
  facts.mode = file.mode();
  facts.owner = {file.uid(), file.gid()};
  if (file.type() == S_IFREG && !writes(flags)) facts.size = file.size();
  return facts;
}

/// A sender that may bring some users learns nothing that these could not find out here.
bool may_come(const IdentityPolicy& policy, const FileCredentials& who) {
  const auto taken = [&](uint32_t gid) { return policy.takes_gid(gid); };
  return policy.takes_uid(who.uid) && taken(who.gid) && std::ranges::all_of(who.groups, taken) &&
         (who.capabilities & policy.deny_capabilities) == 0;
}

}  // namespace

void check_rights(const wire::Check& check, const RightsHere& here, std::vector<std::string>& reasons) {
  // Those of one group of holders after the other: taking on rights takes as long as looking at a file.
  std::map<std::vector<uint32_t>, std::vector<Asked>> by_holders;
  for (const auto* files : {&check.files(), &check.made()})
    for (const auto& file : *files) {
      if (!file.has_mode() || here.told.contains(file.path())) continue;
      if (here.own_proc && file.path().starts_with("/proc/")) continue;
      for (const auto& use : file.uses())
        by_holders[{use.holders().begin(), use.holders().end()}].push_back({&file, &use});
    }
  TaskPaths paths(here.root, here.by_root);
  const TaskPaths::Batch batch(paths);
  for (const auto& [numbers, all] : by_holders) {
    Holders holders;
    for (const uint32_t n : numbers) {
      if (n >= static_cast<uint32_t>(check.credentials_size())) continue;
      FileCredentials who = from_wire(check.credentials(static_cast<int>(n)));
      if (may_come(here.policy, who)) add_holder(holders, who);
    }
    if (holders.empty()) continue;  // who they are is refused
    least_rights_first(holders);
    for (const auto& [file, use] : all) {
      if (reasons.size() >= here.most) return;
      auto reason =
          why_not_here(paths, holders, static_cast<FileUse>(use->use()), facts_of(*file, use->flags()), use->flags());
      const bool told = reason && std::ranges::find(reasons, *reason) != reasons.end();
      if (reason && !told) reasons.push_back(std::move(*reason));
    }
  }
}

}  // namespace migrate

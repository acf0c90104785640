#include "core/files/used_by_link.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <set>
#include <sstream>
#include <string_view>
#include <vector>

#include "core/base/looked_at.h"
#include "core/base/refusals.h"
#include "core/files/regular.h"

namespace migrate {
namespace {

/// "map_files/400000-401000" for "00400000-00401000"
std::string link_of(const std::string& range) {
  unsigned long start = 0, end = 0;
  std::sscanf(range.c_str(), "%lx-%lx", &start, &end);
  char name[64];
  std::snprintf(name, sizeof name, "map_files/%lx-%lx", start, end);
  return name;
}

/// Names of objects of the kernel's own.
constexpr std::array<std::string_view, 5> kNoPaths{"/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage", "/[aio]"};

/// One for each deleted path.
std::vector<std::string> deleted_mappings(const ProcDir& task) {
  std::set<std::string> paths;
  std::vector<std::string> links;
  std::istringstream lines(task.read("maps"));
  for (std::string line; std::getline(lines, line);) {
    const size_t slash = line.find('/');
    if (slash == std::string::npos || !line.ends_with(" (deleted)")) continue;
    const std::string path = line.substr(slash);
    if (std::ranges::any_of(kNoPaths, [&](std::string_view p) { return path.starts_with(p); })) continue;
    if (!paths.insert(path).second) continue;
    links.push_back(link_of(line.substr(0, line.find(' '))));
  }
  return links;
}

}  // namespace

OpenFile file_by_link(const ProcDir& task, const std::string& link, uint32_t flags) {
  OpenFile file;
  file.proc = &task;
  file.link = task.link(link);
  file.ours = task.open(link, O_PATH);
  file.st = stat_cached(file.ours.get(), "", AT_EMPTY_PATH, file.link);
  file.info.flags = flags & ~static_cast<uint32_t>(O_CLOEXEC);
  return file;
}

Refusal refused_by_link(const Refusal& e, const OpenFile& file, const std::string& link) {
  std::string text = e.what();
  const std::string who = file.who();
  if (text.starts_with(who))
    text.replace(0, who.size(), "task " + std::to_string(file.proc->pid()) + " uses as " + link);
  const size_t remedy = text.find("; ");
  return {text.substr(0, remedy), remedy == std::string::npos ? "" : text.substr(remedy + 2)};
}

void preflight_links(const ProcDir& task, const FileDumpOptions& options) {
  Refusals refusals;
  std::vector<std::string> links = deleted_mappings(task);
  links.emplace_back("exe");
  const dev_t internal = internal_shm_device();
  for (const std::string& link : links) {
    try {
      const OpenFile file = file_by_link(task, link, O_PATH);
      // Memory objects of the kernel's own have no path, whatever they are called.
      if (file.type() != S_IFREG || ::makedev(file.st.stx_dev_major, file.st.stx_dev_minor) == internal) continue;
      refusals.ask([&] {
        try {
          check_ghost(file, options);
          check_name(file, options);
        } catch (const Refusal& e) {
          throw refused_by_link(e, file, link);
        }
      });
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;  // unmapped meanwhile
    }
  }
  refusals.demand_none();
}

}  // namespace migrate

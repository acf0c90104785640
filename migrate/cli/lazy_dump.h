// What follows a dump whose pages are not all in its folder (`dump --lazy-pages`): the tree stands still, and its pages
// are given to whoever has restored it, until that has them all.
#pragma once

#include <string>
#include <vector>

#include "core/dump/dump.h"
#include "core/freeze/freezer_cgroup.h"
#include "core/memory/page_runs.h"
#include "migrate/cli/lazy_server.h"

namespace migrate::cli {

/// Until somebody has asked for the first page the tree is ours: whatever ends us lets it run on as if nothing had
/// happened. From the first page on it may run elsewhere, with memory that is only here: it stands in a frozen cgroup,
/// never runs again, and two processes of ours see to its pages, each of which may be killed.
class LazyDump {
 public:
  /// Listens; nothing is touched. Throws Refusal for options that do not go together, and without a freezer.
  LazyDump(const CoreOptions& options, Logger& log);
  /// Takes pages that may come late out of `sources`, to give them later; returns them. Descriptors go with a copy.
  PagesByMemory keep_back(std::vector<PageSource>& sources, const PagesByMemory& lazy);
  uint64_t pages() const { return server_.pages(); }
  /// When all else of the dump is stored, as a folder with this run id: tells the status descriptor, and returns when
  /// the pages were given and the tree is killed. Throws Error, in a sentence that says what has become of the tree:
  /// while it is still ours it is in `dump`, stopped.
  void serve(Dump& dump, const std::string& run_id);

 private:
  struct Shared;

  void check_freezer() const;
  CriuRequest await_first(Dump& dump);
  void hold(Dump& dump);
  void see_through(const CriuRequest& first, Shared& shared);
  void give_pages(const CriuRequest* first, Shared& shared);
  bool wait_for(pid_t child, int signals, int& status);
  bool all_gone() const;
  void end_tree();
  std::string tree() const { return "the tree of " + std::to_string(options_.tree); }

  const CoreOptions& options_;
  Logger& log_;
  LazyServer server_;
  std::string cgroup_;
  std::optional<FreezerCgroup> held_;
  std::vector<IpcObject> left_behind_;  ///< Dump::left_behind()
};

}  // namespace migrate::cli

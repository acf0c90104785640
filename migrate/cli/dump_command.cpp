// migrate dump -t PID -D DIR
#include <chrono>
#include <optional>

#include "core/base/features.h"
#include "core/base/refusals.h"
#include "core/dump/dump.h"
#include "core/dump/preflight.h"
#include "core/files/reset_connections.h"
#include "core/ipc/left_behind.h"
#include "core/restore/restorable.h"
#include "migrate/cli/action_script.h"
#include "migrate/cli/commands.h"
#include "migrate/cli/daemon.h"
#include "migrate/cli/image_chain.h"
#include "migrate/cli/lazy_dump.h"
#include "migrate/cli/page_output.h"
#include "migrate/cli/track_client.h"
#include "migrate/session/base/options.h"
#include "migrate/session/destination/destination_files.h"
#include "migrate/session/handover/still_coming.h"
#include "migrate/session/source/inventory.h"

namespace migrate::cli {
namespace {

DumpOptions dump_options(const CoreOptions& o, bool tracked) {
  DumpOptions d{o};
  d.root = Pid(o.tree);
  d.advice = Advice::all;
  d.tracked = tracked;
  d.lazy = true;
  d.timeout = std::chrono::seconds(o.timeout_seconds);
  d.mappings = MappingReader::shared();
  return d;
}

/// A restore opens each file with the rights of who has it, or by root where nobody else can lead that astray: what it
/// could not open is refused while the program still runs.
void check_files_to_open(Pid root) {
  const Fd slash = open_path("/", O_PATH | O_DIRECTORY);
  std::vector<std::string> reasons;
  check_rights(take_inventory(root, InventoryDepth::whole).check, {.root = slash.get(), .by_root = true, .most = 16},
               reasons);
  Refusals refusals;
  for (const std::string& reason : reasons) {
    const size_t end = reason.rfind("; ");
    std::string remedy = end == std::string::npos ? "have the program close it" : reason.substr(end + 2);
    constexpr std::string_view kElsewhere = " at the destination";
    if (const size_t at = remedy.find(kElsewhere); at != std::string::npos) remedy.erase(at, kElsewhere.size());
    refusals.ask([&] { throw Refusal("a restore here would refuse " + reason.substr(0, end), remedy); });
  }
  refusals.demand_none();
}

/// Stores the pages of a stopped tree; what the tracker knows to stand in the previous folder stays there.
void store_pages(Dump& dump, PageOutput& output, std::optional<TrackClient>& tracker, LazyDump* lazy,
                 const CoreOptions& o, Logger& log) {
  TrackClient::Pages pages;
  if (tracker && !o.prev_images_dir.empty()) {
    pages = tracker->last(output.previous(), std::move(dump.memories()));
  } else {
    pages.sources = std::move(dump.memories());
    pages.full = "no pre-dump tracks the tree";
  }
  if (!pages.full.empty() && !o.prev_images_dir.empty())
    log.warn("all memory is stored, not only what was written since {}: {}", o.prev_images_dir, pages.full);
  const auto start = std::chrono::steady_clock::now();
  const PagesByMemory left = lazy != nullptr ? lazy->keep_back(pages.sources, dump.lazy_pages()) : PagesByMemory();
  const WrittenPages written = output.write(pages.sources, pages.unchanged, dump.images(), dump.lazy_pages(), left);
  DumpStats& stats = dump.stats();
  stats.pages_lazy = lazy != nullptr ? lazy->pages() : 0;
  stats.pages_written = written.written;
  stats.pages_in_parent = written.in_parent;
  stats.memwrite_time = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace

int run_dump(const CoreOptions& o) {
  demand_capabilities();
  if (o.tree == 0) throw Refusal("dump needs a tree", "name its root with --tree PID");
  if (o.leave_running && o.leave_stopped)
    throw Refusal("--leave-running and --leave-stopped exclude each other", "give one of them");
  check_page_options(o);
  const auto logger = make_logger(o);
  const Fd images = open_images_folder(o);
  const Fd work = open_path(o.effective_work_dir(), O_RDONLY | O_DIRECTORY);
  const ActionScripts scripts(o.action_scripts, o.images_dir, *logger);
  std::optional<LazyDump> lazy;
  if (o.lazy_pages) lazy.emplace(o, *logger);
  PageOutput output(o, images.get());
  std::optional<TrackClient> tracker = TrackClient::find(o.tree);
  if (o.track_mem && o.leave_running)
    logger->warn("--track-mem: the tracking ends with this dump; start a new chain with a pre-dump");

  const DumpOptions d = dump_options(o, tracker.has_value());
  refuse_while_pages_come(kDefaultStateDir, d.root);
  Dump::preflight(d, *logger);
  if (!o.leave_running) {
    check_buildable(collect_tree(d.root), o.shell_job);
    check_files_to_open(d.root);
  }
  scripts.run("pre-dump", o.tree);

  Dump dump(d, *logger);
  if (!o.leave_running) check_restorable(dump.images(), dump.memories(), o.shell_job);
  store_pages(dump, output, tracker, lazy ? &*lazy : nullptr, o, *logger);
  const std::string run_id = stamp_run_id(dump.images());
  dump.images().save(images.get());
  // A failing script ends the dump with the tree running on: it stands before the point of no return.
  scripts.run("post-dump", o.tree);
  const DumpStats stats = dump.stats();
  write_dump_stats(stats, work.get());
  if (!lazy) dump.keep_links();
  if (lazy) {
    lazy->serve(dump, run_id);
  } else if (o.leave_running) {
    dump.tree().release(false);
  } else if (o.leave_stopped) {
    dump.tree().release(true);
  } else {
    if (o.tcp_close)
      for (const StoppedTask& task : dump.tree().tasks()) reset_connections(task.pid.get());
    const std::vector<IpcObject> left = dump.left_behind();
    dump.tree().kill();
    dump.tree_is_dead();
    for (const std::string& stays : remove_left_behind(left)) logger->warn("{}", stays);
  }
  // The tree is on its way; nobody tracks what is left of it.
  if (tracker) tracker->end();
  if (o.display_stats) print_dump_stats(stats);
  if (!lazy) tell_status(o);
  logger->info("dumped the tree of {}: {} pages", o.tree, stats.pages_written);
  return 0;
}

}  // namespace migrate::cli

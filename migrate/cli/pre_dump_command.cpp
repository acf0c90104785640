// migrate pre-dump -t PID -D DIR, and migrate untrack -t PID
#include <chrono>

#include "core/base/features.h"
#include "core/base/proc_values.h"
#include "core/dump/dump.h"
#include "core/dump/preflight.h"
#include "core/dump/tree_images.h"
#include "migrate/cli/action_script.h"
#include "migrate/cli/commands.h"
#include "migrate/cli/daemon.h"
#include "migrate/cli/image_chain.h"
#include "migrate/cli/page_output.h"
#include "migrate/cli/track_client.h"
#include "migrate/cli/track_keeper.h"
#include "migrate/session/base/options.h"
#include "migrate/session/handover/still_coming.h"

namespace migrate::cli {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t micros_since(Clock::time_point start) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count());
}

}  // namespace

int run_pre_dump(const CoreOptions& o) {
  demand_capabilities();
  if (o.tree == 0) throw Refusal("pre-dump needs a tree", "name its root with --tree PID");
  check_page_options(o);
  const auto logger = make_logger(o);
  const Fd images_dir = open_images_folder(o);
  const Fd work = open_path(o.effective_work_dir(), O_RDONLY | O_DIRECTORY);
  const ActionScripts scripts(o.action_scripts, o.images_dir, *logger);
  check_frozen(collect_tree(Pid(o.tree)));  // which refuses a tree that is none, or that we are in
  refuse_while_pages_come(kDefaultStateDir, Pid(o.tree));
  scripts.run("pre-dump", o.tree);
  PageOutput output(o, images_dir.get());

  DumpStats stats;
  const auto start = Clock::now();
  TrackClient tracker = TrackClient::find_or_start(o.tree, std::chrono::seconds(o.track_timeout_seconds));
  TrackClient::Pages pages = tracker.round(output.previous(), std::chrono::seconds(o.timeout_seconds));
  stats.memdump_time = micros_since(start);
  if (!pages.full.empty() && !o.prev_images_dir.empty())
    logger->warn("all memory is stored, not only what was written since {}: {}", o.prev_images_dir, pages.full);
  for (const PageSource& source : pages.sources) stats.pages_scanned += source.pages();

  ImageSet images;
  const auto writing = Clock::now();
  const WrittenPages written = output.write(pages.sources, pages.unchanged, images);
  stats.memwrite_time = micros_since(writing);
  stats.pages_written = written.written;
  stats.pages_in_parent = written.in_parent;
  stats.pages_scanned += written.in_parent;
  write_inventory(false, images);
  const std::string id = stamp_run_id(images);
  images.save(images_dir.get());
  write_dump_stats(stats, work.get());
  tracker.stored(id, written.stored);
  if (o.display_stats) print_dump_stats(stats);
  tell_status(o);
  logger->info("pre-dumped the tree of {}: {} pages, {} more in the parent", o.tree, written.written,
               written.in_parent);
  return 0;
}

int run_untrack(const CoreOptions& o) {
  if (o.tree == 0) throw Refusal("untrack needs a tree", "name its root with --tree PID");
  const auto logger = make_logger(o);
  auto tracker = TrackClient::find(o.tree);
  if (!tracker) {
    logger->warn("no pre-dump tracks task {}", o.tree);
    return 0;
  }
  tracker->end();
  logger->info("task {} is not tracked any more", o.tree);
  return 0;
}

int run_track_keeper(char** argv) {
  const auto logger = null_logger();
  constexpr const char* kWhere = "the arguments of a keeper";
  return run_track_keeper({.root = parse_number<pid_t>(argv[2], kWhere),
                           .listener = 3,
                           .idle = std::chrono::seconds(parse_number<int32_t>(argv[3], kWhere))},
                          *logger);
}

}  // namespace migrate::cli

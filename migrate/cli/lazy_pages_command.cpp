// migrate lazy-pages -D DIR
#include <signal.h>

#include <algorithm>

#include "core/base/procfs.h"
#include "core/memory/page_files.h"
#include "core/restore/lazy_restore.h"
#include "lazypages/lazy_memories.h"
#include "lazypages/stored_origin.h"
#include "migrate/cli/commands.h"
#include "migrate/cli/daemon.h"
#include "migrate/cli/lazy_socket.h"

namespace migrate::cli {
namespace {

/// What one restore needs of the images.
struct Plan {
  std::vector<LazyMemory> memories;
  std::map<MemoryId, std::vector<StoredPages>> stored;
};

Plan plan_for(std::vector<LazyTask> tasks, int images_dir, PageImages& pages) {
  const ImageSet images = ImageSet::load(images_dir);
  const std::vector<TaskNode> nodes = read_tree(images);
  Plan plan;
  for (LazyTask& task : tasks) {
    const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const TaskNode& n) { return n.pid == task.pid; });
    if (node == nodes.end() || node->zombie)
      throw Corrupt("the restore", "it hands over task " + std::to_string(task.pid) + ", which the images do not have");
    const TaskImage image = read_task(images, *node);
    const PageSet missing = lazy_in_images(image, pages);
    LazyMemory memory{.memory = {MemoryId::Kind::task, static_cast<uint64_t>(task.pid)},
                      .userfaultfd = std::move(task.userfaultfd),
                      .ranges = lazy_ranges(image, missing),
                      .missing = runs_of(missing, {})};
    if (auto process = open_pidfd(task.pid)) memory.process = std::move(*process);
    const PageSet all(0, kUserSpace);
    plan.stored.emplace(memory.memory, stored_without(pages.locate(pagemap_name(memory.memory)), all - missing));
    plan.memories.push_back(std::move(memory));
  }
  return plan;
}

/// Of one rank: the images do not tell what was written last.
std::vector<RankedRun> all_missing(const LazyMemories& memories) {
  std::vector<RankedRun> all;
  for (const auto& [memory, runs] : memories.missing())
    for (const PageRun& run : runs) all.push_back({.memory = memory, .run = run});
  return all;
}

/// Until they have all pages, or have ended. A failure poisons what is missing: nothing reads zeros in its place.
void serve(LazyMemories& memories, StoredOrigin& origin, Logger& log) {
  try {
    origin.start(memories, FillOrder(all_missing(memories)));
    while (!memories.whole()) {
      memories.serve(std::chrono::milliseconds(20));
      origin.check();
    }
    origin.stop();
    memories.finish();
  } catch (const Error& e) {
    log.error("{}; {} pages are lost: who touches one gets SIGBUS", e.what(), memories.missing_pages());
    origin.stop();
    memories.poison();
    throw;
  }
}

/// Whoever ends us in the middle would make pages zeros.
void hold_on() {
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGPIPE}) ::signal(signal, SIG_IGN);
}

}  // namespace

int run_lazy_pages(const CoreOptions& o) {
  const auto logger = make_logger(o);
  const Fd images = open_path(o.images_dir, O_RDONLY | O_DIRECTORY);
  std::optional<LazyListener> listener(std::in_place, o.effective_work_dir());
  if (begin_serving(o, *logger)) {
    listener->leave();
    return 0;
  }
  std::vector<LazyTask> tasks = listener->receive();
  hold_on();
  listener.reset();
  PageImages pages(images.get());
  Plan plan = plan_for(std::move(tasks), images.get(), pages);
  StoredOrigin origin(std::move(plan.stored));
  LazyMemories memories(std::move(plan.memories), [&](MemoryId memory, uint64_t page) { origin.want(memory, page); });
  const uint64_t pages_missing = memories.missing_pages();
  serve(memories, origin, *logger);
  logger->info("{} pages came while the tree ran", pages_missing);
  return 0;
}

}  // namespace migrate::cli

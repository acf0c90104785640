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
#include "migrate/cli/image_chain.h"
#include "migrate/cli/lazy_socket.h"
#include "migrate/cli/page_link.h"
#include "migrate/cli/remote_origin.h"

namespace migrate::cli {
namespace {

/// What one restore needs of the images.
struct Plan {
  std::vector<LazyMemory> memories;
  std::map<MemoryId, std::vector<StoredPages>> stored;  ///< in the folder
  PagesByMemory named;                                  ///< at the page server
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
                      .process = std::move(task.process),
                      .ranges = lazy_ranges(image, missing),
                      .missing = runs_of(missing, {})};
    const PageSet all(0, kUserSpace);
    auto late = stored_without(pages.locate(pagemap_name(memory.memory)), all - missing);
    plan.named.emplace(memory.memory, only_named(late));
    std::erase_if(late, [](const StoredPages& s) { return s.fd < 0; });
    plan.stored.emplace(memory.memory, std::move(late));
    plan.memories.push_back(std::move(memory));
  }
  return plan;
}

/// Of one rank: the images do not tell what was written last.
FillOrder in_any_order(const PagesByMemory& pages) {
  std::vector<RankedRun> all;
  for (const auto& [memory, set] : pages)
    for (const PageRun& run : runs_of(set, {})) all.push_back({.memory = memory, .run = run});
  return FillOrder(std::move(all));
}

PagesByMemory pages_of(const std::map<MemoryId, std::vector<StoredPages>>& stored) {
  PagesByMemory all;
  for (const auto& [memory, runs] : stored)
    for (const StoredPages& s : runs) all[memory].append(s.address, s.address + s.bytes);
  return all;
}

/// Where the pages of one restore come from.
struct Origins {
  StoredOrigin stored;
  RemoteOrigin* remote;  ///< nullptr: all are in the folder
  PagesByMemory named;

  void want(MemoryId memory, uint64_t page) {
    if (remote != nullptr && named.at(memory).contains(page)) return remote->want(memory, page);
    stored.want(memory, page);
  }
  void stop() {
    stored.stop();
    if (remote != nullptr) remote->stop();
  }
  void check() const {
    stored.check();
    if (remote != nullptr) remote->check();
  }
};

/// Memory of which nothing is missing may also be dead; that is noticed in its own time.
void look_for_dead(LazyMemories& memories) {
  const Deadline deadline = Deadline::in(std::chrono::milliseconds(150));
  while (!deadline.passed()) memories.serve(std::chrono::milliseconds(20));
}

/// Until they have all pages, or have ended. A failure poisons what is missing: nothing reads zeros in its place.
/// Whether all that were there at first still were in the end.
bool serve(LazyMemories& memories, Origins& origins, LazyRestore& restore, Logger& log) {
  const size_t tasks = memories.spaces();
  try {
    while (!memories.whole()) {
      memories.serve(std::chrono::milliseconds(20));
      origins.check();
      restore.state(false);
    }
    if (restore.state(false) == LazyRestore::State::not_ours) look_for_dead(memories);
    const bool all_alive = memories.spaces() >= tasks;
    origins.stored.stop();
    memories.finish();
    return all_alive;
  } catch (const Error& e) {
    log.error("{}; {} pages are lost: who touches one gets SIGBUS", e.what(), memories.missing_pages());
    origins.stop();
    memories.poison();
    throw;
  }
}

/// Whether the page server may end what it holds: not if nobody can tell that the tree has run here.
bool has_run(LazyRestore& restore, bool all_alive) {
  switch (restore.state(true)) {
    case LazyRestore::State::runs:
      return true;
    case LazyRestore::State::not_ours:
      return all_alive;  // else it may have failed in its last step
    default:
      return false;
  }
}

/// Whoever ends us in the middle would make pages zeros.
void hold_on() {
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGPIPE}) ::signal(signal, SIG_IGN);
}

void refuse_without_server(const PagesByMemory& named, const std::string& folder) {
  for (const auto& [memory, pages] : named) {
    if (pages.empty()) continue;
    throw Refusal("the folder " + folder + " only names " + std::to_string(pages.pages()) + " pages of task " +
                      std::to_string(memory.id) + ", and does not have them",
                  "give --page-server, --address and --port of the `migrate dump --lazy-pages` that made it");
  }
}

void check_options(const CoreOptions& o, int images_dir) {
  const ImageSet images = ImageSet::load(images_dir);
  if (o.page_server && o.ps_socket >= 0)
    throw Refusal("--ps-socket cannot be connected again when it is cut", "give --address and --port");
  if (o.page_server && !images.has("inventory.img"))
    throw Refusal("the folder " + o.images_dir + " has no images", "put there what the dump has written first");
  if (o.page_server) return;
  if (o.tls || o.port != 0 || o.recover_timeout_seconds != 0)
    throw Refusal("--tls, --port and --recover-timeout are about a page server", "give --page-server too");
  if (!images.has("pstree.img")) return;  // a dump may still be to come
  PageImages pages(images_dir);
  PagesByMemory named;
  for (const TaskNode& node : read_tree(images)) {
    const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(node.pid)};
    if (!node.zombie) named.emplace(memory, only_named(pages.locate(pagemap_name(memory))));
  }
  refuse_without_server(named, o.images_dir);
}

std::unique_ptr<RemoteOrigin> connect(const CoreOptions& o, int images_dir, Logger& log) {
  const std::string run_id = run_id_of(images_dir, ".");
  RemoteOrigin::Options options{.connect = [&o] { return connect_page_server(o); },
                                .run_id = run_id,
                                .trust = [&o](const Stream& stream) { check_page_server(stream, o.insecure); }};
  if (o.recover_timeout_seconds > 0) options.recover = std::chrono::seconds(o.recover_timeout_seconds);
  return std::make_unique<RemoteOrigin>(std::move(options), log);
}

}  // namespace

int run_lazy_pages(const CoreOptions& o) {
  const auto logger = make_logger(o);
  const Fd images = open_path(o.images_dir, O_RDONLY | O_DIRECTORY);
  check_options(o, images.get());
  // Before anybody can restore: then the page server knows of us when a tree begins to run here.
  const std::unique_ptr<RemoteOrigin> remote = o.page_server ? connect(o, images.get(), *logger) : nullptr;
  std::optional<LazyListener> listener(std::in_place, o.effective_work_dir());
  if (begin_serving(o, *logger)) {
    listener->leave();
    return 0;
  }
  LazyRestore restore = listener->receive();
  hold_on();
  listener.reset();
  PageImages pages(images.get());
  Plan plan = plan_for(restore.take_tasks(), images.get(), pages);
  if (!remote) refuse_without_server(plan.named, o.images_dir);
  Origins origins{StoredOrigin(plan.stored), remote.get(), plan.named};
  LazyMemories memories(std::move(plan.memories), [&](MemoryId memory, uint64_t page) { origins.want(memory, page); });
  const uint64_t pages_missing = memories.missing_pages();
  if (remote) remote->claim(memories, in_any_order(plan.named));
  restore.go();
  origins.stored.start(memories, in_any_order(pages_of(plan.stored)));
  if (remote) remote->start(memories);
  const bool all_alive = serve(memories, origins, restore, *logger);
  if (remote) {
    remote->finish();
    if (!has_run(restore, all_alive))
      throw Error("the restore has ended without a word that the tree runs: the page server keeps what it holds");
    remote->close();
  }
  logger->info("{} pages came while the tree ran", pages_missing);
  return 0;
}

}  // namespace migrate::cli

// migrate lazy-pages -D DIR
#include <unistd.h>

#include "core/memory/page_files.h"
#include "core/memory/page_images.h"
#include "core/restore/task_image.h"
#include "migrate/cli/commands.h"
#include "migrate/cli/lazy_front.h"
#include "migrate/cli/lazy_serving.h"

namespace migrate::cli {
namespace {

void check_options(const CoreOptions& o, int images_dir, Logger& log) {
  const ImageSet images = ImageSet::load(images_dir);
  if (o.page_server && o.ps_socket >= 0)
    throw Refusal("--ps-socket cannot be connected again when it is cut", "give --address and --port");
  if (o.page_server && !images.has("inventory.img"))
    throw Refusal("the folder " + o.images_dir + " has no images", "put there what the dump has written first");
  if (o.page_server) return;
  if (o.tls || o.port != 0 || o.recover_timeout_seconds != 0)
    throw Refusal("--tls, --port and --recover-timeout are about a page server", "give --page-server too");
  if (!images.has("pstree.img")) {  // a dump may still be to come
    log.warn("the folder {} holds no dump yet; its pages are served when there is one", o.images_dir);
    return;
  }
  PageImages pages(images_dir);
  PagesByMemory named;
  for (const TaskNode& node : read_tree(images)) {
    const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(node.pid)};
    if (!node.zombie) named.emplace(memory, only_named(pages.locate(pagemap_name(memory))));
  }
  refuse_without_server(named, o.images_dir);
}

/// One log for all processes, whatever number they have.
CoreOptions with_one_log(CoreOptions o) {
  if (!std::exchange(o.log_pid, false) || o.log_file.empty() || o.log_file == "-") return o;
  o.log_file += "." + std::to_string(::getpid());
  return o;
}

}  // namespace

int run_lazy_pages(const CoreOptions& options) {
  const CoreOptions o = with_one_log(options);
  const LoggerPtr first_log = make_logger(o);
  std::map<std::string, Fd> kept;
  Fd& images = kept["images"] = open_images_folder(o);
  check_options(o, images.get(), *first_log);
  first_log->flush();
  return run_behind_front(o, std::move(kept), [&o](LazyHost& host, const BehindFront& front) {
    const LoggerPtr log = make_logger(o, true);
    LazyServing(o, host, front, *log).run();
  });
}

}  // namespace migrate::cli

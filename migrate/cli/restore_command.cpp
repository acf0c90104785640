// migrate restore -D DIR
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "core/base/features.h"
#include "core/image/magic.h"
#include "core/restore/lazy_restore.h"
#include "core/restore/restore.h"
#include "images/stats.pb.h"
#include "migrate/cli/action_script.h"
#include "migrate/cli/commands.h"
#include "migrate/cli/daemon.h"
#include "migrate/cli/lazy_socket.h"

namespace migrate::cli {
namespace {

/// As a shell would: the restored root's exit code, or 128 + its signal.
int wait_for_root(pid_t root) {
  int status = 0;
  while (::waitpid(root, &status, 0) < 0) {
    if (errno != EINTR) throw Error("wait for the restored task", std::to_string(root), errno);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// -1 if none of the standard descriptors is one.
int own_terminal() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::isatty(fd) == 1) return fd;
  return -1;
}

uint32_t micros(std::chrono::steady_clock::duration d) {
  return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
}

}  // namespace

int run_restore(const CoreOptions& o) {
  demand_capabilities();
  const auto logger = make_logger(o);
  const Fd folder = open_images_folder(o);
  const Fd work = open_path(o.effective_work_dir(), O_RDONLY | O_DIRECTORY);
  const ActionScripts scripts(o.action_scripts, o.images_dir, *logger);
  const ImageSet images = ImageSet::load(folder.get());
  if (!images.has("pstree.img"))
    throw Refusal("folder " + o.images_dir + " holds no dump (there is no pstree.img)",
                  "name that of a `dump` with -D; a `pre-dump` alone has memory only");

  RestoreOptions r{o};
  if (o.shell_job) r.terminal = own_terminal();
  r.sibling = o.restore_sibling;
  r.detached = o.restore_detached && !o.restore_sibling;
  r.root = o.root;
  r.lazy = o.lazy_pages;
  {
    PageImages pages(folder.get());
    refuse_named(images, pages, o.lazy_pages, "the folder " + o.images_dir);
  }
  std::optional<LazyConnection> daemon;
  if (o.lazy_pages) daemon.emplace(o.effective_work_dir());
  scripts.run("pre-restore");
  const auto start = std::chrono::steady_clock::now();
  Restore restore(r, *logger);
  restore.prepare(images, nullptr);
  const auto forked = std::chrono::steady_clock::now();
  const PagesByMemory missing = restore.fill_from(folder.get());
  restore.finish(images, missing);
  const pid_t root = restore.root().get();
  write_pidfile(o, root);
  scripts.run("post-restore", root);

  img::stats_entry stats;
  auto* entry = stats.mutable_restore();
  entry->set_pages_compared(0);
  entry->set_pages_skipped_cow(0);
  entry->set_forking_time(micros(forked - start));
  entry->set_restore_time(micros(std::chrono::steady_clock::now() - start));
  ImageSet stats_image;
  stats_image.put("stats-restore", magic::kStats, stats);
  stats_image.save(work.get());

  scripts.run("pre-resume", root);
  tell_status(o);
  if (daemon) {
    // From the daemon's answer on the tree may be here alone: nothing but the gate comes after it.
    for (LazyMemory& memory : restore.take_lazy_memories())
      daemon->send(static_cast<pid_t>(memory.memory.id), memory.userfaultfd.get(), std::move(memory.process));
    daemon->finish();
  }
  restore.open_gate(o.leave_stopped);
  if (daemon) daemon->tell_runs();
  scripts.run("post-resume", root);
  logger->info("restored the tree of {}", root);
  if (o.restore_detached || o.restore_sibling) return 0;
  return wait_for_root(root);
}

}  // namespace migrate::cli

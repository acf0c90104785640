// migrate dump -t PID -D DIR
#include <chrono>
#include <filesystem>
#include <iostream>

#include "core/dump/dump.h"
#include "migrate/cli/action_script.h"
#include "migrate/cli/commands.h"

namespace migrate::cli {
namespace {

void print_stats(const DumpStats& s) {
  std::cout << "Displaying dump stats:\nFreezing time: " << s.freezing_time << " us\nFrozen time: " << s.frozen_time
            << " us\nMemory dump time: " << s.memdump_time << " us\nMemory write time: " << s.memwrite_time
            << " us\nMemory pages scanned: " << s.pages_scanned << "\nMemory pages written: " << s.pages_written << "\n";
}

}  // namespace

int run_dump(const CoreOptions& o) {
  if (o.tree == 0) throw Refusal("dump needs a tree", "name its root with --tree PID");
  if (o.leave_running && o.leave_stopped)
    throw Refusal("--leave-running and --leave-stopped exclude each other", "give one of them");
  const auto logger = make_logger(o);
  const Fd images = open_path(o.images_dir, O_RDONLY | O_DIRECTORY);
  const Fd work = open_path(o.effective_work_dir(), O_RDONLY | O_DIRECTORY);
  const ActionScripts scripts(o.action_scripts, o.images_dir, *logger);

  DumpOptions d;
  d.root = Pid(o.tree);
  d.shell_job = o.shell_job;
  d.tcp_close = o.tcp_close;
  d.ext_unix_sk = o.ext_unix_sk;
  d.link_remap = o.link_remap;
  d.file_locks = o.file_locks;
  d.ghost_limit = o.ghost_limit;
  d.timeout = std::chrono::seconds(o.timeout_seconds);
  Dump::preflight(d, *logger);
  scripts.run("pre-dump", o.tree);

  Dump dump(d, *logger);
  write_page_images(dump, images.get());
  dump.images().save(images.get());
  // A failing script ends the dump with the tree running on: it stands before the point of no return.
  scripts.run("post-dump", o.tree);
  const DumpStats stats = dump.stats();
  write_dump_stats(stats, work.get());
  if (o.leave_running) {
    dump.tree().release(false);
  } else if (o.leave_stopped) {
    dump.tree().release(true);
  } else {
    dump.tree().kill();
  }
  if (o.display_stats) print_stats(stats);
  if (o.status_fd >= 0) write_full(o.status_fd, std::as_bytes(std::span("\0", 1)), "the status descriptor");
  logger->info("dumped the tree of {}: {} pages", o.tree, stats.pages_written);
  return 0;
}

}  // namespace migrate::cli

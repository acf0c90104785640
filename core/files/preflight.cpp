// What can be refused while the tree still runs: each kind says what its dump would (kind.h). All of it but
// programs of reuseport groups is checked again when the tree is stopped; here a doubt is no refusal, since tasks come
// and go and close what was just seen.
#include <string>

#include "core/base/refusals.h"
#include "core/files/file_locks.h"
#include "core/files/kinds.h"
#include "core/files/lasting_state.h"
#include "core/files/running_tree.h"
#include "core/files/used_by_link.h"
#include "core/files/waiting_descriptor.h"

namespace migrate {
namespace {

class FilesPreflight {
 public:
  FilesPreflight(const std::vector<ProcDir>& tasks, const FileDumpOptions& options, Logger& log)
      : options_(options),
        tree_(tasks),
        context_{options, discarded_, log},
        kinds_(context_),
        lasting_(tasks,
                 [this](const OpenFile& waits) { check_waiting_descriptor(waits, kinds_.of(waits).kind->type); }) {
    context_.in_tree = [this](pid_t pid) { return tree_.inside(pid); };
    context_.pid_in_tree = [](pid_t pid) { return pid; };  // what is written is thrown away
  }

  void look_at(const ProcDir& task) {
    const auto pidfd = open_pidfd(task.pid());
    if (!pidfd) return;
    try {
      for (const int fd : task.descriptors()) refusals_.ask([&] { look_at_if_there(task, fd, pidfd->get()); });
      refusals_.ask([&] { preflight_links(task, options_); });
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;  // it ended meanwhile
    }
  }

  void finish() {
    for (const DumpKinds::One& one : kinds_.all()) refusals_.ask([&] { one.dump->preflight_end(preflight_); });
    refusals_.ask([&] { lasting_.finish(); });
    refusals_.demand_none();
  }

 private:
  void look_at_if_there(const ProcDir& task, int fd, int pidfd) {
    try {
      look_at(task, fd, pidfd);
    } catch (const Error& e) {
      if (!descriptor_is_gone(e)) throw;  // closed meanwhile
    }
  }

  void look_at(const ProcDir& task, int fd, int pidfd) {
    OpenFile file;
    file.proc = &task;
    file.fd = fd;
    const std::string number = std::to_string(fd);
    file.link = task.link("fd/" + number);
    const bool path = file.link.starts_with("/");
    if (path || file.link.starts_with("pipe:")) {
      file.info = parse_fdinfo(task.read("fdinfo/" + number));
      file.st = stat_cached(task.fd(), "fd/" + number, 0, file.who());
    }
    if (path) check_file_locks(file, options_);
    if (file.link.starts_with("socket:")) file.take(get_remote_fd(pidfd, fd));
    const DumpKinds::One& one = kinds_.of(file);
    if (one.dump->preflight_opens(file)) {
      if (!file.ours) file.take(get_remote_fd(pidfd, fd));
      if (file.info.text.empty()) file.info = parse_fdinfo(task.read("fdinfo/" + number));
      file.id = context_.new_id();
    }
    one.dump->preflight(file, preflight_);
  }

  const FileDumpOptions& options_;
  RunningTree tree_;
  ImageSet discarded_;
  DumpContext context_;
  DumpKinds kinds_;
  LastingStates lasting_;
  Preflight preflight_{tree_, lasting_};
  Refusals refusals_;
};

}  // namespace

void FileDumper::preflight(const std::vector<ProcDir>& tasks, const FileDumpOptions& options, Logger& log) {
  FilesPreflight preflight(tasks, options, log);
  for (const ProcDir& task : tasks) preflight.look_at(task);
  preflight.finish();
}

}  // namespace migrate

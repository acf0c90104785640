// inotify: watches of a folder, a file, one that fires once, and a file that was deleted while it is open; numbers with
// gaps.
#include <poll.h>
#include <sys/inotify.h>

#include <map>

#include "workload.h"

using namespace workload;

namespace {

/// By watch: what it told.
std::map<int, uint32_t> events(int inotify) {
  alignas(inotify_event) char bytes[4096];
  std::map<int, uint32_t> seen;
  for (ssize_t n; (n = read(inotify, bytes, sizeof bytes)) > 0;)
    for (ssize_t at = 0; at < n;) {
      const auto* e = reinterpret_cast<const inotify_event*>(bytes + at);
      seen[e->wd] |= e->mask;
      at += static_cast<ssize_t>(sizeof *e + e->len);
    }
  return seen;
}

int make(const std::string& path) {
  return must(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open a file");
}

int add(int inotify, const std::string& path, uint32_t mask) {
  return must(inotify_add_watch(inotify, path.c_str(), mask), "inotify_add_watch");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const std::string folder = w.path("watched"), inside = folder + "/file";
        must(mkdir(folder.c_str(), 0700), "mkdir");
        // Not open: beside files that are written a move leaves a mark for a moment, to see whether both hosts have
        // them.
        close(make(inside));
        const int deleted = make(w.path("deleted")), once = make(w.path("once"));
        const int watching = must(inotify_init1(IN_NONBLOCK | IN_CLOEXEC), "inotify_init1");
        const int removed = add(watching, folder, IN_CREATE);
        const int on_file = add(watching, inside, IN_MODIFY | IN_EXCL_UNLINK);
        const int on_deleted = add(watching, w.path("deleted"), IN_MODIFY);
        must(inotify_rm_watch(watching, removed), "inotify_rm_watch");
        const int on_folder = add(watching, folder, IN_CREATE | IN_DELETE);
        const int on_once = add(watching, w.path("once"), IN_MODIFY | IN_ONESHOT);
        must(unlink(w.path("deleted").c_str()), "unlink");
        events(watching);
        bool fired = false;
        w.serve([&] {
          expect(events(watching).empty(), "there is an event before anything happened");
          close(make(folder + "/new"));
          must(unlink((folder + "/new").c_str()), "unlink");
          const int file = make(inside);
          for (const int fd : {file, deleted, once}) must(pwrite(fd, "x", 1, 0), "pwrite");
          close(file);
          const auto seen = events(watching);
          const auto of = [&](int wd) { return seen.contains(wd) ? seen.at(wd) : 0; };
          expect_equal(of(on_folder), uint32_t{IN_CREATE | IN_DELETE}, "of the folder");
          expect_equal(of(on_file), uint32_t{IN_MODIFY}, "of the file");
          expect_equal(of(on_deleted), uint32_t{IN_MODIFY}, "of the deleted file");
          expect_equal(of(on_once), fired ? 0U : uint32_t{IN_MODIFY | IN_IGNORED}, "of the watch that fires once");
          fired = true;
        });
      },
      argv[0]);
}

// What workloads of System V objects share: objects are noted in the file `ipc` of the workload's folder, one a line as
// ipcrm(1) takes it, so that whoever ends the program can remove what it leaves.
#pragma once

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

#include <string>

#include "workload.h"

namespace workload {

/// Returns `id`.
inline int noted(const Workload& w, char option, int id) {
  const int fd = must(open(w.path("ipc").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666), "open ipc");
  const std::string line = std::string("-") + option + " " + std::to_string(id) + "\n";
  expect(write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size()), "ipc cannot be written");
  close(fd);
  return id;
}

/// A key that nobody else uses: of our pid and `n`.
inline key_t key_of(int n) { return 0x4d000000 | (getpid() & 0xfffff) << 4 | n; }

/// Runs `body` in a child and waits for its end.
inline void in_child(const std::function<void()>& body) {
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    int status = 0;
    try {
      body();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "child: %s\n", e.what());
      status = 1;
    }
    std::_Exit(status);
  }
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  expect(status == 0, "a child failed");
}

}  // namespace workload

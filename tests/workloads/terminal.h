// What the workloads with pseudo-terminals share.
#pragma once

#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include <string>

#include "workload.h"

namespace workload {

struct Pty {
  int master = -1, slave = -1;
};

inline int new_master(bool unlocked = true) {
  const int master = must(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), "posix_openpt");
  if (unlocked) must(unlockpt(master), "unlockpt");
  return master;
}

inline std::string slave_name(int master) {
  char name[64];
  expect(ptsname_r(master, name, sizeof name) == 0, "ptsname_r failed");
  return name;
}

inline int open_slave(int master, int flags = O_RDWR) {
  return must(open(slave_name(master).c_str(), flags | O_NOCTTY | O_CLOEXEC), "open a slave");
}

inline Pty new_pty() {
  Pty pty;
  pty.master = new_master();
  pty.slave = open_slave(pty.master);
  return pty;
}

inline termios modes_of(int fd) {
  termios t{};
  must(tcgetattr(fd, &t), "tcgetattr");
  return t;
}

/// No echo, no lines, no signals.
inline void make_raw(int fd) {
  termios t = modes_of(fd);
  cfmakeraw(&t);
  must(tcsetattr(fd, TCSANOW, &t), "tcsetattr");
}

inline void put_text(int fd, const std::string& text) {
  expect(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()), "a write to a terminal failed");
}

/// What comes within a second, up to `bytes`.
inline std::string take_text(int fd, size_t bytes) {
  std::string text;
  const int64_t deadline = now_ns() + 1'000'000'000;
  while (text.size() < bytes && now_ns() < deadline) {
    int there = 0;
    must(ioctl(fd, FIONREAD, &there), "FIONREAD");
    if (there == 0) {
      sleep_ms(1);
      continue;
    }
    char part[4096];
    const ssize_t n = read(fd, part, std::min(sizeof part, bytes - text.size()));
    if (n <= 0) break;
    text.append(part, static_cast<size_t>(n));
  }
  return text;
}

/// What one end writes, the other reads.
inline void expect_passes(int from, int to, const std::string& text, const std::string& what) {
  put_text(from, text);
  const std::string got = take_text(to, text.size());
  expect(got == text, what + " passes '" + got + "' for '" + text + "'");
}

}  // namespace workload

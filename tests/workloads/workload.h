// What all workloads share: the files of the contract in README.md, and ways to fail with a sentence.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace workload {

/// Throws with `what` (and errno's text, if `with_errno`) unless `ok`.
inline void expect(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error(what);
}

/// For set-up and system calls: throws with errno's text when `value` is -1; gives the value otherwise.
template <typename T>
T must(T value, const char* what) {
  if (value == static_cast<T>(-1)) throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
  return value;
}

template <typename A, typename B>
void expect_equal(const A& got, const B& want, const std::string& what) {
  if (!(got == static_cast<A>(want)))
    throw std::runtime_error(what + " is " + std::to_string(got) + ", was " + std::to_string(want));
}

inline int64_t now_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t{};
  clock_gettime(clock, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

inline void sleep_ms(int64_t ms) {
  timespec t{ms / 1000, (ms % 1000) * 1'000'000};
  while (nanosleep(&t, &t) == -1 && errno == EINTR) {
  }
}

/// Waits until `done` says so; throws after `ms` milliseconds.
inline void await(const std::function<bool()>& done, const std::string& what, int64_t ms = 20'000) {
  const int64_t deadline = now_ns() + ms * 1'000'000;
  while (!done()) {
    if (now_ns() > deadline) throw std::runtime_error("waited too long: " + what);
    sleep_ms(1);
  }
}

/// Anonymous memory shared with the children forked later, zeroed.
template <typename T>
T* shared_memory(size_t count = 1) {
  void* p = mmap(nullptr, sizeof(T) * count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  expect(p != MAP_FAILED, "mmap of shared memory failed");
  return static_cast<T*>(p);
}

/// A byte that depends on place and salt, so that misplaced pages show.
inline uint8_t pattern(uint64_t i, uint64_t salt) {
  uint64_t x = (i + 1) * 0x9E3779B97F4A7C15ULL + salt * 0xD1B54A32D192ED03ULL;
  return static_cast<uint8_t>((x >> 32) ^ (x >> 11));
}
inline void fill_pattern(void* p, size_t n, uint64_t salt) {
  for (size_t i = 0; i < n; ++i) static_cast<uint8_t*>(p)[i] = pattern(i, salt);
}
inline void expect_pattern(const void* p, size_t n, uint64_t salt, const std::string& what) {
  for (size_t i = 0; i < n; ++i)
    if (static_cast<const uint8_t*>(p)[i] != pattern(i, salt))
      throw std::runtime_error(what + " differs at byte " + std::to_string(i));
}

/// The contract with the test driver. Lives in the main task; forked children must not call serve().
class Workload {
 public:
  /// `life`: seconds after which it ends by itself.
  Workload(int argc, char** argv, int64_t life = 1200) : argc_(argc), argv_(argv), life_(life) {
    if (argc < 2) {
      std::fprintf(stderr, "usage: %s DIR [NUMBER...]\n", argv[0]);
      std::exit(2);
    }
    dir_ = argv[1];
    heartbeat_ = must(open(path("heartbeat").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666), "open heartbeat");
  }
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  long number(int index, long otherwise) const {
    return argc_ > index + 2 ? std::strtol(argv_[index + 2], nullptr, 10) : otherwise;
  }
  const std::string& dir() const { return dir_; }

  /// Says READY, then beats and answers checks until the end of the program. `verify` throws what is wrong; `pause` is
  /// what happens between two beats.
  [[noreturn]] void serve(
      const std::function<void()>& verify, const std::function<void()>& pause = [] { sleep_ms(5); }) {
    put("status", "READY " + std::to_string(getpid()) + "\n");
    for (;;) {
      turn(verify);
      pause();
    }
  }

  /// One beat; answers a new check.
  void turn(const std::function<void()>& verify) {
    char text[24];
    const int n = std::snprintf(text, sizeof text, "%20llu\n", static_cast<unsigned long long>(++beats_));
    if (pwrite(heartbeat_, text, static_cast<size_t>(n), 0) != n) std::_Exit(3);
    if (now_ns() - started_ > life_ * 1'000'000'000) std::_Exit(4);
    char token[64] = {};
    const int fd = open(path("check").c_str(), O_RDONLY | O_CLOEXEC);
    if (fd == -1) {
      if (access(dir_.c_str(), F_OK) == -1 && errno == ENOENT) std::_Exit(5);
      return;
    }
    const ssize_t got = read(fd, token, sizeof token - 1);
    close(fd);
    if (got <= 0 || std::strcmp(token, answered_) == 0) return;
    std::string answer = std::string(token) + " PASS\n";
    try {
      verify();
    } catch (const std::exception& e) {
      answer = std::string(token) + " FAIL " + e.what() + "\n";
    }
    std::memcpy(answered_, token, sizeof token);
    put("result", answer);
  }

 private:
  /// Appears whole or not at all.
  void put(const std::string& name, const std::string& text) {
    const std::string temporary = path(name + ".new");
    const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd == -1 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) std::_Exit(3);
    close(fd);
    if (rename(temporary.c_str(), path(name).c_str()) == -1) std::_Exit(3);
  }

  int argc_;
  char** argv_;
  int64_t life_;
  std::string dir_;
  int heartbeat_ = -1;
  uint64_t beats_ = 0;
  int64_t started_ = now_ns();
  char answered_[64] = {};
};

/// main() of a workload: set-up failures end it with a sentence.
inline int run(const std::function<void()>& body, const char* name) {
  try {
    body();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", name, e.what());
    return 1;
  }
  return 0;
}

}  // namespace workload

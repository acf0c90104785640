#include <poll.h>
#include <sys/socket.h>
#include <csignal>
#include <memory>
#include <sstream>
#include <thread>

#include "small.h"

namespace workload {

namespace {

/// Asked by one, answered by another task or thread.
struct Exchange {
  std::atomic<uint32_t> asked{0}, answered{0};
  std::atomic<bool> not_here{false};
  char failure[400] = {};

  /// In the one who answers.
  void answer(const Verify& verify) {
    const uint32_t now = asked;
    if (answered == now + 1) return;
    failure[0] = 0;
    try {
      verify();
    } catch (const std::exception& e) {
      not_here = dynamic_cast<const NotHere*>(&e) != nullptr;
      std::snprintf(failure, sizeof failure, "%s", e.what());
    }
    answered = now + 1;
  }

  void await_set_up() {
    await([&] { return answered == 1; }, "the set-up in another task");
    if (not_here) throw NotHere(failure);
    expect(failure[0] == 0, failure);
  }

  void ask() {
    const uint32_t n = ++asked;
    await([&] { return answered == n + 1; }, "an answer");
    expect(failure[0] == 0, failure);
  }
};

/// Sets up and answers for as long as `on` says.
void be_asked(Exchange& exchange, const std::function<Verify()>& set_up, const std::function<bool()>& on) {
  Verify verify;
  exchange.answer([&] { verify = set_up(); });
  while (on()) {
    exchange.answer(verify);
    sleep_ms(10);
  }
}

}  // namespace

std::vector<Small>& all_small() {
  static std::vector<Small> all;
  return all;
}

int Place::open_file(const std::string& name, int flags, mode_t mode) const {
  return must(open(path(name).c_str(), flags | O_CLOEXEC, mode), ("open " + name).c_str());
}

void allowed(long result, const std::string& what) {
  if (result == -1 && errno == EPERM) throw NotHere("we may not " + what);
  must(result, what.c_str());
}

Verify in_child(const std::function<Verify()>& set_up) {
  auto* exchange = new (shared_memory<Exchange>()) Exchange;
  const pid_t parent = getpid();
  if (must(fork(), "fork") == 0) {
    be_asked(*exchange, set_up, [&] { return getppid() == parent; });
    std::_Exit(0);
  }
  exchange->await_set_up();
  return [=] { exchange->ask(); };
}

Verify in_thread(const std::function<Verify()>& set_up) {
  const auto exchange = std::make_shared<Exchange>();
  std::thread([=] { be_asked(*exchange, set_up, [] { return true; }); }).detach();
  exchange->await_set_up();
  return [=] { exchange->ask(); };
}

Verify blocked(const std::function<long()>& call, const std::function<void()>& wake, long want,
               const std::function<void()>& again) {
  struct Calls {
    std::atomic<uint32_t> begun{0}, ended{0}, taken{0};
    std::atomic<long> result{0};
  };
  const auto calls = std::make_shared<Calls>();
  std::thread([=] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    for (;;) {
      ++calls->begun;
      const long result = call();
      calls->result = result == -1 ? -errno : result;
      ++calls->ended;
      while (calls->taken != calls->ended) sleep_ms(1);
    }
  }).detach();
  await([=] { return calls->begun == 1; }, "the thread");
  sleep_ms(20);
  return [=] {
    sleep_ms(20);
    if (calls->ended != calls->taken) {
      const long result = calls->result;
      calls->taken = calls->ended.load();
      throw std::runtime_error("the call that blocks has ended with " + std::to_string(result));
    }
    const uint32_t n = calls->ended;
    wake();
    await([=] { return calls->ended == n + 1; }, "the call that blocks, to end");
    const long result = calls->result;
    again();
    calls->taken = n + 1;
    expect_equal(result, want, "the result of the call that blocked");
    await([=] { return calls->begun == n + 2; }, "the thread");
    sleep_ms(5);
  };
}

pid_t idle_child(const std::function<void()>& first) {
  const pid_t parent = getpid();
  const Pipe ready = make_pipe();
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    try {
      first();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "child: %s\n", e.what());
      std::_Exit(1);
    }
    close(ready.in);
    put(ready.out, "x");
    close(ready.out);
    while (getppid() == parent) sleep_ms(50);
    std::_Exit(0);
  }
  close(ready.out);
  char c = 0;
  const ssize_t got = read(ready.in, &c, 1);
  expect(got == 1 && read(ready.in, &c, 1) == 0, "a child could not set up");  // it has closed its end, too
  close(ready.in);
  return child;
}

char* area(size_t pages, int prot, int flags, int fd, off_t offset) {
  void* at = mmap(nullptr, pages * kPage, prot, flags, fd, offset);
  if (at == MAP_FAILED) throw std::runtime_error(std::string("mmap: ") + std::strerror(errno));
  return static_cast<char*>(at);
}

bool readable(const void* at) {
  const Pipe p = make_pipe();
  const bool ok = write(p.out, at, 1) == 1;
  close(p.in);
  close(p.out);
  return ok;
}

bool writable(void* at) {
  const Pipe p = make_pipe();
  const bool same = write(p.out, at, 1) == 1;
  if (!same) put(p.out, std::string(1, '\0'));
  const bool ok = read(p.in, at, 1) == 1;
  close(p.in);
  close(p.out);
  return ok;
}

std::string text_of(const std::string& path) {
  const int fd = must(open(path.c_str(), O_RDONLY | O_CLOEXEC), path.c_str());
  std::string text;
  char buffer[8192];
  for (ssize_t n = 0; (n = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(fd);
  return text;
}

std::string field(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(key + ":", 0) != 0) continue;
    std::istringstream words(line.substr(key.size() + 1));
    std::string all;
    for (std::string word; words >> word;) all += (all.empty() ? "" : " ") + word;
    return all;
  }
  return "";
}

std::string smaps(const void* at, const std::string& key) {
  std::istringstream lines(text_of("/proc/self/smaps"));
  std::string here;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    unsigned long start = 0, end = 0;
    char dash = 0;
    if (std::sscanf(line.c_str(), "%lx%c%lx ", &start, &dash, &end) == 3 && dash == '-')
      inside = start <= reinterpret_cast<uintptr_t>(at) && reinterpret_cast<uintptr_t>(at) < end;
    if (inside) here += line + "\n";
  }
  return field(here, key);
}

Ends socket_ends(int type) {
  int p[2];
  must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, p), "socketpair");
  return {p[0], p[1]};
}

Pipe make_pipe(int flags) {
  int ends[2] = {};
  must(pipe2(ends, O_CLOEXEC | flags), "pipe2");
  return {ends[0], ends[1]};
}

std::string drain(int fd) {
  pollfd p{fd, POLLIN, 0};
  std::string text(65536, '\0');
  const ssize_t n = poll(&p, 1, 0) == 1 ? read(fd, text.data(), text.size()) : 0;
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return text;
}

void put(int fd, const std::string& text) {
  expect(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()), "a write was short");
}

void fill(char* at, size_t pages, uint64_t salt) { fill_pattern(at, pages * kPage, salt); }
void expect_filled(const char* at, size_t pages, uint64_t salt, const std::string& what) {
  expect_pattern(at, pages * kPage, salt, what);
}

}  // namespace workload

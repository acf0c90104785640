// The receiver's daemon and the processes that it starts for connections.
#include "migrate/session/destination/serving.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <vector>

#include "migrate/session/destination/daemon_link.h"
#include "tests/session/in_child.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

std::unique_ptr<Stream> connection() {
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "make", "a socket pair");
  ::close(ends[1]);
  return raw_stream(Fd(ends[0]));
}

bool has_children() { return ::waitpid(-1, nullptr, WNOHANG) == 0; }

/// Takes all descriptors of this process but `free` ones. They are given back with what is returned.
std::vector<Fd> leave_descriptors(size_t free) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = 100;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::vector<Fd> taken;
  for (int fd; (fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) taken.emplace_back(fd);
  taken.resize(taken.size() - free);
  return taken;
}

/// Exit status 0: as it should be.
int start_when_short_of_descriptors(size_t free) {
  EventLoop loop;
  std::optional<int> code;
  ServingProcesses serving(loop, {},
                           {.serve = [](std::unique_ptr<Stream>, Fd) { return 7; },
                            .ended =
                                [&](bool, std::optional<int> exited) {
                                  code = exited;
                                  loop.stop();
                                }},
                           *null_logger());
  std::unique_ptr<Stream> first = connection(), second = connection();
  {
    const std::vector<Fd> taken = leave_descriptors(free);
    try {
      serving.start(std::move(first), {});
      return 1;
    } catch (const Error& e) {
      if (e.code() != EMFILE) return 2;
    }
    if (!serving.empty()) return 3;  // the daemon would wait for it for ever
    if (has_children()) return 4;
  }
  serving.start(std::move(second), {});
  ::alarm(20);
  loop.run();
  return code == 7 && serving.empty() && !has_children() ? 0 : 5;
}

TEST(ServingProcesses, OneThatCannotBeWatchedIsEndedAndForgotten) {
  // No descriptor for the connection to it; none for its pidfd.
  for (const size_t free : {1, 2})
    EXPECT_EQ(in_child([&] { return start_when_short_of_descriptors(free); }), 0) << free << " descriptors are free";
}

/// Exit status 0: the first gets a place, and none that comes when that has ended.
int ask_for_places() {
  EventLoop loop;
  ServingProcesses* all = nullptr;
  int ends = 0;
  std::vector<std::optional<int>> codes;
  const auto start = [&] { all->start(connection(), {}); };
  ServingProcesses serving(loop, {.migrations = 1},
                           {.serve =
                                [](std::unique_ptr<Stream>, Fd link) {
                                  const std::string refusal =
                                      DaemonLink(std::move(link)).take_place(Deadline::in(milliseconds(10'000)));
                                  return refusal.empty() ? 0 : refusal == "one was enough" ? 1 : 2;
                                },
                            .ended =
                                [&](bool migration, std::optional<int> code) {
                                  codes.push_back(migration ? code : code.value_or(-1) + 10);
                                  if (++ends == 3) return loop.stop();
                                  if (ends == 2) all->take_no_more("one was enough");
                                  start();
                                }},
                           *null_logger());
  all = &serving;
  start();
  ::alarm(20);
  loop.run();
  return codes == std::vector<std::optional<int>>{0, 0, 11} ? 0 : 1;
}

TEST(ServingProcesses, NoPlaceIsFreeWhereNoMoreAreTaken) { EXPECT_EQ(in_child(ask_for_places), 0); }

}  // namespace
}  // namespace migrate

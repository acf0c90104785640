#include "migrate/session/handover/watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <span>
#include <vector>

#include "core/base/error.h"
#include "migrate/session/base/options.h"
#include "migrate/session/base/session.h"
#include "migrate/session/guardian/background.h"
#include "migrate/session/handover/settle_later.h"
#include "migrate/session/handover/source_feed.h"
#include "migrate/session/telling/events.h"
#include "migrate/session/wire/link_words.h"

namespace migrate {
namespace {

constexpr int kLeftFd = 3, kGuardianFd = 4;

/// In the forked child; async-signal-safe calls only.
[[noreturn]] void become_watch(int left, int guardian, char* const* argv) {
  if (::fork() != 0) ::_exit(0);
  execute_in_background({left, guardian}, argv);
}

bool wait_for_both_gone() {
  std::array<pollfd, 2> p{pollfd{kLeftFd, POLLIN, 0}, pollfd{kGuardianFd, POLLIN, 0}};
  while (p[0].fd >= 0 || p[1].fd >= 0) {
    if (::poll(p.data(), p.size(), -1) < 0 && errno != EINTR) return false;
    for (pollfd& one : p) {
      if (one.revents & POLLNVAL) return false;
      if (one.revents != 0) one.fd = -1;
      one.revents = 0;
    }
  }
  return true;
}

/// Whoever collects what the agent says waits until nobody can write there any more: not for us.
void let_readers_go() {
  struct stat st {};
  if (::fstat(STDERR_FILENO, &st) != 0 || !(S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode))) return;
  const Fd null = open_path("/dev/null", O_RDWR);
  ::dup2(null.get(), STDERR_FILENO);
}

}  // namespace

SessionWatch::SessionWatch(const std::string& state_dir, const SessionId& id, Role role, int guardian,
                           const LinkOptions& link)
    : SessionWatch(state_dir, id, role, guardian, role == Role::source ? words_of(link) : std::vector<std::string>{}) {}

SessionWatch::SessionWatch(const std::string& state_dir, const SessionId& id, Role role, int guardian,
                           const std::vector<std::string>& link) {
  std::array<int, 2> ends{};
  check(::pipe2(ends.data(), O_CLOEXEC), "make", "a pipe");
  const Fd read_end(ends[0]);
  left_.reset(ends[1]);
  std::vector<std::string> words{"migrate", "guardian-watch", std::string(name_of(role)), state_dir, to_hex(id)};
  words.insert(words.end(), link.begin(), link.end());
  const std::vector<char*> argv = argv_of(words);
  const pid_t pid = check(::fork(), "start", "the watch");
  if (pid == 0) become_watch(read_end.get(), guardian, argv.data());
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

int run_watch(int argc, char** argv, Logger& log) {
  if (argc < 5) return kRefused;
  const std::optional<Role> role = role_named(argv[2]);
  const std::optional<SessionId> id = session_from_hex(argv[4]);
  if (!role || !id || !wait_for_both_gone()) return kRefused;
  let_readers_go();
  JournalStore store(argv[3]);
  const std::unique_ptr<TreeKeeper> keeper = cgroup_keeper(log);
  PrintedEvents events(ReportFormat::lines, "watch");
  const Timeouts timeouts = with_test_timeouts({});
  const LinkOptions link = link_from_words(std::span(argv, static_cast<size_t>(argc)).subspan(5));
  // Anew for each attempt: certificates may have been renewed.
  std::optional<Connector> connector;
  const auto asker = [&](const std::string& address) {
    connector.emplace(link);
    const std::optional<JournalEntry> seen = store.peek(*id, *role);
    return ask_over(*connector, address, seen && seen->state == State::frozen ? brief(timeouts) : timeouts);
  };
  const auto feed = [&](const JournalEntry& entry) {
    feed_from_held_tree(entry, {.connector = *connector,
                                .address = entry.peer,
                                .session = *id,
                                .timeouts = timeouts,
                                .options = {},
                                .events = events});
  };
  settle_until_done(store, *keeper, *id, *role, timeouts, asker, {}, events, log, feed);
  return kMoved;
}

}  // namespace migrate

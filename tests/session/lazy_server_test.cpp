// The lazy host of a session, without a session: what it answers, whatever its threads do.
#include "migrate/session/lazy/lazy_server.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "core/base/procfs.h"
#include "migrate/session/guardian/lazy_client.h"
#include "migration.pb.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

Deadline soon() { return Deadline::in(milliseconds(5'000)); }

/// A lazy host in processes of its own.
class HostOfNobody {
 public:
  HostOfNobody() {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    auto [ours, theirs] = PacketSocket::pair();
    const std::string path = dir_.path() + "/lazy";
    Fd listener = listen_local(path);
    pid_ = ::fork();
    if (pid_ == 0) run(path, std::move(listener), theirs);
    guardian_.emplace(std::move(ours));
    agent_ = LazyClient::connect(path);
  }
  ~HostOfNobody() {
    guardian_->discard();
    const Deadline deadline = Deadline::in(milliseconds(20'000));
    int failed = 0, left = 0, status = 0;
    for (pid_t ended = 0; (ended = ::waitpid(-1, &status, WNOHANG | __WALL)) >= 0; ::usleep(ended == 0 ? 500 : 0)) {
      if (ended > 0 && status != 0) ++failed;
      if (ended > 0 || !deadline.passed()) continue;
      ++left;
      break;
    }
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(left, 0) << "it does not leave";
  }
  HostOfNobody(const HostOfNobody&) = delete;
  HostOfNobody& operator=(const HostOfNobody&) = delete;

  LazyClient& agent() { return *agent_; }
  void begin_feed() {
    wire::Feed feed;
    feed.set_streams(2);
    agent_->begin_feed(feed, soon());
  }
  /// Its thread; 0 if that is not the only one.
  pid_t begin_first_feed() {
    begin_feed();
    const std::vector<pid_t> all = threads();
    return all.size() == 1 ? all.front() : 0;
  }
  /// But the one that talks.
  std::vector<pid_t> threads() const {
    std::vector<pid_t> all = ProcDir(pid_).threads();
    std::erase(all, pid_);
    return all;
  }
  /// Whether they end until only one is left.
  bool feeds_end() const {
    const Deadline deadline = soon();
    while (threads().size() > 1 && !deadline.passed()) ::usleep(500);
    return threads().size() == 1;
  }

 private:
  [[noreturn]] static void run(const std::string& path, Fd listener, PacketSocket& guardian) {
    const LoggerPtr log = null_logger();
    LazyServerOptions settings;
    settings.link.insecure = true;
    settings.path = path;
    HoldOptions options;
    options.kept.emplace("listener", std::move(listener));
    options.kept.emplace("guardian", Fd(::dup(guardian.fd())));
    try {
      hold_lazily(std::move(options), [&](LazyHost& host) { LazyServer(host, settings, *log).run(); });
    } catch (...) {
    }
    ::_exit(1);
  }

  TempDir dir_;
  pid_t pid_ = 0;
  std::optional<LazyClient> guardian_, agent_;
};

/// A thread that does not go on until this is gone, as one that gets no processor.
class StoppedThread {
 public:
  explicit StoppedThread(pid_t thread) : thread_(thread) {
    // Not while it has a lock, like the allocator's, that others need.
    const ProcDir proc(thread);
    for (const Deadline end = soon(); proc.stat().state != 'S' && !end.passed();) ::usleep(1000);
    EXPECT_EQ(::ptrace(PTRACE_SEIZE, thread_, nullptr, nullptr), 0);
    EXPECT_EQ(::ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr), 0);
    EXPECT_EQ(::waitpid(thread_, nullptr, __WALL), thread_);
  }
  ~StoppedThread() { ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr); }
  StoppedThread(const StoppedThread&) = delete;
  StoppedThread& operator=(const StoppedThread&) = delete;

 private:
  pid_t thread_;
};

TEST(LazyServer, AnswersWhileAFeedTakesItsTimeToEnd) {
  HostOfNobody host;
  const pid_t thread = host.begin_first_feed();
  ASSERT_NE(thread, 0);
  {
    const StoppedThread of_feed(thread);
    for (int i = 0; i < 3; ++i) EXPECT_NO_THROW(host.begin_feed());
    EXPECT_GT(host.agent().ask(soon()).missing, 0u);
  }
  EXPECT_TRUE(host.feeds_end()) << "feeds that were followed by others have not ended";
}

// A source that begins one feed after the other, each a thread that waits for the one before.
TEST(LazyServer, MoreFeedsThanEndAreRefused) {
  HostOfNobody host;
  const pid_t thread = host.begin_first_feed();
  ASSERT_NE(thread, 0);
  {
    const StoppedThread of_feed(thread);
    std::string refused;
    int taken = 1;
    for (; taken < 100 && refused.empty(); taken += refused.empty() ? 1 : 0) {
      try {
        host.begin_feed();
      } catch (const Error& e) {
        refused = e.what();
      }
    }
    EXPECT_EQ(refused, "the source begins feeds faster than they end: 8 have not ended yet");
    EXPECT_EQ(taken, 8);
    EXPECT_EQ(host.threads().size(), 8u);
    EXPECT_GT(host.agent().ask(soon()).missing, 0u);
  }
  EXPECT_TRUE(host.feeds_end());
  EXPECT_NO_THROW(host.begin_feed()) << "they have ended";
}

}  // namespace
}  // namespace migrate

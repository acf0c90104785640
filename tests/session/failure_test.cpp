// The exit code of a command that fails: 2 only if it was refused, before anything was touched.
#include "migrate/session/telling/failure.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "migrate/session/base/session.h"
#include "migrate/session/telling/interrupt.h"
#include "pageserver/stream.h"
#include "tests/session/in_child.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

ReceiveOptions receiver(const std::string& state_dir) {
  ReceiveOptions options;
  options.listen = "127.0.0.1:0";
  options.link.insecure = true;
  options.state_dir = state_dir;
  return options;
}

TEST(Failure, OfAReceiverIsNoRefusal) {
  const ReceiveOptions options = receiver("/proc/nowhere");
  EXPECT_EQ(in_child([&] { return run_receive(options, *null_logger()); }), kFailed);
}

TEST(Failure, OfAReceiverThatIsRefusedHasItsOwnCode) {
  const TempDir folder;
  ReceiveOptions options = receiver(folder.path());
  options.link.insecure = false;
  EXPECT_EQ(in_child([&] { return run_receive(options, *null_logger()); }), kRefused);
}

TEST(Failure, OfResolveIsNoRefusal) {
  ResolveOptions options;
  options.state_dir = "/proc/self/cmdline";
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kFailed);
  const TempDir folder;
  options.state_dir = folder.path();
  options.session = "no id";
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kRefused);
  options.session = std::string(32, 'a');  // one that nobody knows
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kRefused);
}

TEST(Failure, ForWantOfPermissionsNamesRootToOthers) {
  const auto tells = [](const Error& e) { return sentence_of(e).find("root") != std::string::npos; };
  EXPECT_FALSE(tells(Error("open", "x", EACCES)));
  EXPECT_EQ(in_child([&] {
              if (::setresuid(65534, 65534, 65534) != 0) return 10;
              return (tells(Error("open", "x", EACCES)) ? 1 : 0) + (tells(Error("open", "x", ENOENT)) ? 2 : 0);
            }),
            1);
}

// Whichever wait the user's Ctrl-C met.
TEST(Failure, WhatTheUserEndedIsInterrupted) {
  const auto words = [](bool interrupted) {
    return in_child([=] {
      const InterruptWatch interrupt;
      if (interrupted) ::kill(::getpid(), SIGINT);
      const auto says = [&](const Error& e, const char* expected) { return interrupt.reason_of(e) == expected; };
      return (says(Cancelled("cancelled", "the connection with b"), "interrupted") ? 1 : 0) +
             (says(Cancelled("cancelled", "the connection with b"), "cancelled the connection with b") ? 2 : 0) +
             (says(Disconnected("read from", "b"), "read from b") ? 4 : 0);
    });
  };
  EXPECT_EQ(words(true), 1 + 4);
  EXPECT_EQ(words(false), 2 + 4);
}

TEST(Failure, WhatALimitEndedSaysSo) {
  static constexpr std::chrono::milliseconds kNow{1}, kSoon{100}, kNever{3'600'000};
  const auto outcome = [](std::chrono::milliseconds limit, bool lifted) {
    return in_child([=] {
      InterruptWatch interrupt;
      interrupt.set_limit(limit, "too long");
      if (lifted) interrupt.lift_limit();
      pollfd stop{interrupt.stop().fd(), POLLIN, 0};
      const bool stopped = ::poll(&stop, 1, limit == kNow ? 10'000 : 300) == 1;
      return (stopped ? 1 : 0) + (interrupt.interrupted() ? 2 : 0) +
             (interrupt.reason_of(Cancelled("cancelled", "a wait")) == "too long" ? 4 : 0);
    });
  };
  EXPECT_EQ(outcome(kNow, false), 1 + 2 + 4);
  EXPECT_EQ(outcome(kNever, false), 0);
  EXPECT_EQ(outcome(kSoon, true), 0);
}

TEST(Failure, ResolveMakesNoStateFolder) {
  const TempDir folder;
  ResolveOptions options;
  options.state_dir = folder.path() + "/none";
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kMoved);
  options.session = std::string(32, 'a');
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kRefused);
  EXPECT_NE(::access(options.state_dir.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace migrate

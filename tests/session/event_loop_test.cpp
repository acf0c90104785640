#include "migrate/session/loop/event_loop.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <optional>
#include <stdexcept>

#include "core/base/fd.h"
#include "migrate/session/loop/waiter.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;

Fd event() { return Fd(::eventfd(0, EFD_CLOEXEC)); }

void trigger(const Fd& fd) {
  const uint64_t one = 1;
  ASSERT_EQ(::write(fd.get(), &one, sizeof one), ssize_t{sizeof one});
}

TEST(EventLoop, CallsWhoIsReadable) {
  EventLoop loop;
  const Fd a = event(), b = event();
  int of_a = 0;
  const EventLoop::Watch first = loop.when_readable(a.get(), [&] {
    ++of_a;
    loop.stop();
  });
  const EventLoop::Watch second = loop.when_readable(b.get(), [] { FAIL() << "nobody wrote there"; });
  trigger(a);
  loop.run();
  EXPECT_EQ(of_a, 1);
}

TEST(EventLoop, AHandlerMayEndItsOwnWatchAndWatchTheSameDescriptorAnew) {
  EventLoop loop;
  const Fd a = event();
  trigger(a);
  std::optional<EventLoop::Watch> watch;
  int later = 0;
  watch = loop.when_readable(a.get(), [&] {
    watch.reset();
    watch = loop.when_writable(a.get(), [&] {
      ++later;
      watch.reset();
    });
  });
  loop.run();  // ends when nothing is watched
  EXPECT_EQ(later, 1);
}

TEST(EventLoop, WhatAHandlerThrowsEndsTheRun) {
  EventLoop loop;
  const Fd a = event();
  trigger(a);
  const EventLoop::Watch watch = loop.when_readable(a.get(), [] { throw std::runtime_error("from the handler"); });
  EXPECT_THROW(loop.run(), std::runtime_error);
}

TEST(EventLoop, TimersCallOnceAndNotWhenTheyAreGone) {
  EventLoop loop;
  int calls = 0;
  const EventLoop::Watch kept = loop.after(milliseconds(1), [&] { ++calls; });
  {
    const EventLoop::Watch gone = loop.after(milliseconds(0), [&] { calls += 100; });
  }
  loop.run();
  EXPECT_EQ(calls, 1);
}

TEST(Waiter, WaitsAlsoWhenWhatWasWatchedBeforeIsGone) {
  Waiter waiter;
  const Fd a = event();
  constexpr milliseconds kTime(20);
  for (int i = 0; i < 3; ++i) {
    const WatchedFor watched(waiter, a.get());
    const auto began = std::chrono::steady_clock::now();
    waiter.wait(kTime);
    EXPECT_GE(std::chrono::steady_clock::now() - began, kTime - milliseconds(1))
        << "the timer of the loop counts whole milliseconds";
  }
}

TEST(Waiter, NoTimeIsAWaitThatEnds) {
  Waiter waiter;
  const Fd a = event();
  const WatchedFor watched(waiter, a.get());
  waiter.wait(milliseconds(0));  // due before the loop waits
  EXPECT_FALSE(waiter.ready(a.get()));
  trigger(a);
  waiter.wait(milliseconds(0));
  EXPECT_TRUE(waiter.ready(a.get())) << "what is due together is called together";
}

TEST(Waiter, TellsWhichDescriptorsAreReady) {
  Waiter waiter;
  const Fd a = event(), b = event();
  waiter.watch(a.get());
  const WatchedFor second(waiter, b.get());
  waiter.wait(milliseconds(1));
  EXPECT_FALSE(waiter.ready(a.get()));
  trigger(b);
  waiter.wait(milliseconds(10'000));
  EXPECT_FALSE(waiter.ready(a.get()));
  EXPECT_TRUE(waiter.ready(b.get()));
  waiter.forget(a.get());
  waiter.watch(-1);
  EXPECT_FALSE(waiter.ready(-1));
}

}  // namespace
}  // namespace migrate

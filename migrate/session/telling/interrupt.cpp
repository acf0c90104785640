#include "migrate/session/telling/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>

namespace migrate {

namespace {

constexpr const char* kInterrupted = "interrupted";

}  // namespace

sigset_t block_end_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGINT);
  ::sigaddset(&set, SIGTERM);
  // A blocked signal reaches a signalfd even if it is ignored.
  struct sigaction hangup {};
  if (::sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) ::sigaddset(&set, SIGHUP);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

InterruptWatch::InterruptWatch() {
  const sigset_t set = block_end_signals();
  signals_.reset(check(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), "watch", "signals"));
  timer_.reset(check(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "make", "a timer"));
  thread_ = std::thread([this] {
    std::array<pollfd, 3> p{pollfd{signals_.get(), POLLIN, 0}, pollfd{quit_.fd(), POLLIN, 0},
                            pollfd{timer_.get(), POLLIN, 0}};
    for (;;) {
      if (::poll(p.data(), p.size(), -1) < 0) {
        if (errno == EINTR) continue;
        return;
      }
      if (p[0].revents != 0) stop_.trigger();
      if (p[0].revents != 0 || p[1].revents != 0 || pass_limit()) return;
    }
  });
}

bool InterruptWatch::pass_limit() {
  const std::lock_guard lock(mutex_);
  uint64_t times = 0;
  if (::read(timer_.get(), &times, sizeof times) != sizeof times) return false;
  passed_ = true;
  stop_.trigger();
  return true;
}

void InterruptWatch::set_limit(std::chrono::milliseconds time, std::string sentence) {
  const std::lock_guard lock(mutex_);
  sentence_ = std::move(sentence);
  itimerspec when{};
  when.it_value.tv_sec = time.count() / 1000;
  when.it_value.tv_nsec = time.count() % 1000 * 1'000'000;
  check(::timerfd_settime(timer_.get(), 0, &when, nullptr), "set", "a timer");
}

void InterruptWatch::lift_limit() {
  const std::lock_guard lock(mutex_);
  const itimerspec never{};
  check(::timerfd_settime(timer_.get(), 0, &never, nullptr), "stop", "a timer");
}

InterruptWatch::~InterruptWatch() {
  quit_.trigger();
  thread_.join();
}

bool InterruptWatch::interrupted() const {
  pollfd p{signals_.get(), POLLIN, 0};
  return stop_.stopped() || ::poll(&p, 1, 0) > 0;
}

std::string InterruptWatch::why() const {
  const std::lock_guard lock(mutex_);
  return passed_ ? sentence_ : kInterrupted;
}

void InterruptWatch::throw_if_interrupted() const {
  if (interrupted()) throw Cancelled(why());
}

std::string InterruptWatch::reason_of(const std::exception& failure) const {
  return dynamic_cast<const Cancelled*>(&failure) != nullptr && interrupted() ? why() : failure.what();
}

}  // namespace migrate

#include "migrate/session/telling/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

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
  thread_ = std::thread([this] {
    std::array<pollfd, 2> p{pollfd{signals_.get(), POLLIN, 0}, pollfd{quit_.fd(), POLLIN, 0}};
    while (::poll(p.data(), p.size(), -1) < 0 && errno == EINTR) {
    }
    if (p[0].revents != 0) stop_.trigger();
  });
}

InterruptWatch::~InterruptWatch() {
  quit_.trigger();
  thread_.join();
}

bool InterruptWatch::interrupted() const {
  pollfd p{signals_.get(), POLLIN, 0};
  return stop_.stopped() || ::poll(&p, 1, 0) > 0;
}

void InterruptWatch::throw_if_interrupted() const {
  if (interrupted()) throw Cancelled(std::string(kInterrupted));
}

std::string InterruptWatch::reason_of(const std::exception& failure) const {
  return dynamic_cast<const Cancelled*>(&failure) != nullptr && interrupted() ? kInterrupted : failure.what();
}

}  // namespace migrate

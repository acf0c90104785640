#include "pageserver/stop_event.h"

#include <sys/eventfd.h>

namespace migrate {

StopEvent::StopEvent() : fd_(check(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "create", "eventfd")) {}

void StopEvent::trigger() noexcept {
  stopped_.store(true, std::memory_order_relaxed);
  const uint64_t one = 1;
  // EAGAIN would mean that the counter is at its maximum: readable as well.
  [[maybe_unused]] const ssize_t n = ::write(fd_.get(), &one, sizeof one);
}

}  // namespace migrate

#include "pageserver/run_beside.h"

#include <thread>

#include "pageserver/stop_event.h"

namespace migrate {

std::exception_ptr run_beside(const std::function<void()>& work, const std::function<void(int wake)>& watch,
                              const std::function<void()>& cancel) {
  std::exception_ptr failure;
  StopEvent finished;
  std::thread worker([&] {
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
    finished.trigger();
  });
  try {
    while (!finished.stopped()) watch(finished.fd());
  } catch (...) {
    cancel();
    worker.join();
    throw;
  }
  worker.join();
  return failure;
}

}  // namespace migrate

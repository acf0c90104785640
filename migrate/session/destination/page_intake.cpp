#include "migrate/session/destination/page_intake.h"

#include <exception>
#include <thread>

namespace migrate {

void PageIntake::CurrentSink::write(MemoryId memory, uint64_t address, std::span<const std::byte> data) {
  if (!target) throw Corrupt("the pages from the peer", "they came before there was room for them");
  target->write(memory, address, data);
}

PageIntake::PageIntake(std::vector<std::unique_ptr<Stream>> streams, const ReceiveLimits& limits)
    : receiver_(std::move(streams), sink_, limits) {}

void PageIntake::set_targets(std::vector<FillTarget> targets) {
  sink_.target.reset();
  sink_.target.emplace(std::move(targets));
}

PageTotals PageIntake::receive(const std::function<void(int wake)>& watch) {
  std::exception_ptr failure;
  StopEvent finished;
  PageTotals totals;
  std::thread worker([&] {
    try {
      totals = receiver_.receive();
    } catch (...) {
      failure = std::current_exception();
    }
    finished.trigger();
  });
  try {
    while (!finished.stopped()) watch(finished.fd());
  } catch (...) {
    receiver_.cancel();
    worker.join();
    throw;
  }
  worker.join();
  if (failure) std::rethrow_exception(failure);
  return totals;
}

}  // namespace migrate

#include "migrate/session/destination/page_intake.h"

#include "pageserver/run_beside.h"

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
  PageTotals totals;
  const std::exception_ptr failure =
      run_beside([&] { totals = receiver_.receive(); }, watch, [&] { receiver_.cancel(); });
  if (failure) std::rethrow_exception(failure);
  return totals;
}

}  // namespace migrate

// The destination agent's page streams, and where their pages go at the moment.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "core/restore/restore.h"
#include "pageserver/page_stream.h"

namespace migrate {

/// One thread, besides the page workers that a pass has.
class PageIntake {
 public:
  explicit PageIntake(std::vector<std::unique_ptr<Stream>> streams, const ReceiveLimits& limits = {});

  /// From the next pass on pages go there; Corrupt for others.
  void set_targets(std::vector<FillTarget> targets);
  /// Ends the use of the targets: the memory is about to be moved.
  void forget_targets() { sink_.target.reset(); }

  /// Receives one pass. `watch` is called again and again meanwhile, with a descriptor that gets readable at the end of
  /// the pass; what it throws ends the pass.
  PageTotals receive(const std::function<void(int wake)>& watch);
  const PageCounters& counters() const { return receiver_.counters(); }

 private:
  /// Passes are barriers, so that nobody writes while the target changes.
  struct CurrentSink final : PageSink {
    void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override;
    std::optional<StagingSink> target;
  };

  CurrentSink sink_;
  PageReceiver receiver_;
};

}  // namespace migrate

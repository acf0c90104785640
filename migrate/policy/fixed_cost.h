// The part of the downtime that does not depend on how much memory is sent: at first an estimate from counts, then
// corrected by what was measured.
#pragma once

#include <cstdint>

namespace migrate {

/// What the tree consists of.
struct TreeSize {
  uint64_t tasks = 1, threads = 1, mappings = 0, descriptors = 0;
  uint64_t pages = 0;         ///< of its own memory: page tables are walked while it is stopped
  uint64_t walked_pages = 0;  ///< of them, those walked a second time, for the flags of mappings (MappingReader)
};

/// Seconds. The slopes were measured with a thread, a mapping and a descriptor more (bench/README.md).
struct CostRates {
  double freeze_base = 0.0025, freeze_task = 0.0005, freeze_thread = 200e-6, freeze_mapping = 8e-6,
         freeze_descriptor = 20e-6;
  double finish_base = 0.0015, finish_task = 0.001, finish_thread = 200e-6, finish_mapping = 8e-6,
         finish_descriptor = 20e-6;
  double freeze_page = 15e-9;
  double images_base = 0.002, images_page = 2e-9, images_walked_page = 45e-9;
  double handover_base = 0.003;  ///< two durable journal writes and what is said between them
  double handover_round_trips = 3;
  double run_on_base = 0.006, run_on_thread = 22e-6, run_on_page = 60e-9;
};

/// Seconds, in the order in which they come. Whoever has measured a part writes it over the estimate.
struct FixedCost {
  double freeze = 0;    ///< stop, describe, freeze
  double images = 0;    ///< until the destination has the images
  double finish = 0;    ///< from the last page to ready
  double handover = 0;  ///< from ready to the open gate
  double run_on =
      0.001;  ///< before and within freeze: from the last scan on, until the last thread stands, pages are written
  double total() const { return freeze + images + finish + handover; }
};

FixedCost estimate_fixed_cost(const TreeSize& size, double round_trip_seconds, const CostRates& rates = {});

/// What this pair of hosts took against what was estimated, from earlier moves: a factor a part, which follows within
/// bounds what two moves one after the other agree about, so that one on a busy host does not spoil the next.
class Calibration {
 public:
  FixedCost apply(const FixedCost& estimated) const;
  /// `estimated` as it was before apply().
  void learn(const FixedCost& estimated, const FixedCost& measured);
  /// The factors and the newest move's, for keeping between moves; `set` bounds what it is given.
  FixedCost factors() const { return factors_; }
  FixedCost newest() const { return newest_; }
  void set(const FixedCost& factors, const FixedCost& newest);

 private:
  FixedCost factors_{1, 1, 1, 1, 1}, newest_{1, 1, 1, 1, 1};
};

}  // namespace migrate

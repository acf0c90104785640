#include "migrate/policy/fixed_cost.h"

#include <algorithm>
#include <cmath>

namespace migrate {
namespace {

constexpr double kLeast = 0.2, kMost = 5, kFollow = 0.5;

double bounded(double factor) { return std::isfinite(factor) ? std::clamp(factor, kLeast, kMost) : 1; }

FixedCost bounded(const FixedCost& f) {
  return {bounded(f.freeze), bounded(f.images), bounded(f.finish), bounded(f.handover), bounded(f.run_on)};
}

constexpr double FixedCost::*kParts[] = {&FixedCost::freeze, &FixedCost::images, &FixedCost::finish,
                                         &FixedCost::handover, &FixedCost::run_on};

double median(double a, double b, double c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

}  // namespace

FixedCost estimate_fixed_cost(const TreeSize& size, double round_trip_seconds, const CostRates& rates) {
  const auto tasks = double(size.tasks), threads = double(size.threads), mappings = double(size.mappings),
             descriptors = double(size.descriptors), pages = double(size.pages), walked = double(size.walked_pages);
  FixedCost cost;
  cost.freeze = rates.freeze_base + rates.freeze_task * tasks + rates.freeze_thread * threads +
                rates.freeze_mapping * mappings + rates.freeze_descriptor * descriptors + rates.freeze_page * pages;
  cost.images = rates.images_base + round_trip_seconds + rates.images_page * pages + rates.images_walked_page * walked;
  cost.finish = rates.finish_base + rates.finish_task * tasks + rates.finish_thread * threads +
                rates.finish_mapping * mappings + rates.finish_descriptor * descriptors;
  cost.handover = rates.handover_base + rates.handover_round_trips * round_trip_seconds;
  cost.run_on = rates.run_on_base + rates.run_on_thread * threads + rates.run_on_page * pages;
  return cost;
}

FixedCost Calibration::apply(const FixedCost& e) const {
  return {e.freeze * factors_.freeze, e.images * factors_.images, e.finish * factors_.finish,
          e.handover * factors_.handover, e.run_on * factors_.run_on};
}

void Calibration::learn(const FixedCost& estimated, const FixedCost& measured) {
  for (const auto part : kParts) {
    if (!(estimated.*part > 0) || !(measured.*part >= 0)) continue;
    const double now = bounded(measured.*part / estimated.*part), factor = factors_.*part;
    factors_.*part = bounded(factor + kFollow * (median(factor, newest_.*part, now) - factor));
    newest_.*part = now;
  }
}

void Calibration::set(const FixedCost& factors, const FixedCost& newest) {
  factors_ = bounded(factors);
  newest_ = bounded(newest);
}

}  // namespace migrate

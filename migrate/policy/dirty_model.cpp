#include "migrate/policy/dirty_model.h"

#include <algorithm>
#include <cmath>

namespace migrate {
namespace {

constexpr size_t kPointsKept = 6;
constexpr double kForgetting = 0.6;              ///< weight of a round against the one after it
constexpr double kShortest = 1e-6;               ///< seconds
constexpr double kTauMin = 1e-4, kTauMax = 1e4;  ///< seconds; the largest is as good as a constant rate
constexpr int kTauSteps = 65;

}  // namespace

double DirtyModel::shape(double seconds, double tau) { return -std::expm1(-seconds / tau); }

void DirtyModel::add(double pages, double seconds) {
  points_.push_back({std::max(pages, 0.0), std::max(seconds, kShortest)});
  if (points_.size() > kPointsKept) points_.pop_front();
  fit();
}

/// The tau whose curve misses the rounds least. Errors are relative, since rounds shrink by orders of magnitude; a page
/// is added so that an empty round does not decide alone.
void DirtyModel::fit() {
  tau_ = kTauMax;
  double least = INFINITY;
  for (int step = kTauSteps - 1; step >= 0; --step) {
    const double tau = kTauMin * std::pow(kTauMax / kTauMin, double(step) / (kTauSteps - 1));
    double mean = 0, weights = 0, weight = 1;
    for (auto p = points_.rbegin(); p != points_.rend(); ++p, weight *= kForgetting) {
      mean += weight * std::log((p->pages + 1) / shape(p->seconds, tau));
      weights += weight;
    }
    mean /= weights;
    double miss = 0;
    weight = 1;
    for (auto p = points_.rbegin(); p != points_.rend(); ++p, weight *= kForgetting) {
      const double e = std::log((p->pages + 1) / shape(p->seconds, tau)) - mean;
      miss += weight * e * e;
    }
    if (miss < least * 0.999) {
      least = miss;
      tau_ = tau;
    }
  }
}

double DirtyModel::pages_in(double seconds) const {
  if (points_.empty() || seconds <= 0) return 0;
  const Point& last = points_.back();
  return last.pages * shape(seconds, tau_) / shape(last.seconds, tau_);
}

double DirtyModel::rate() const { return points_.empty() ? 0 : points_.back().pages / points_.back().seconds; }

double DirtyModel::mean_rate() const {
  double pages = 0, seconds = 0;
  for (const Point& p : points_) {
    pages += p.pages;
    seconds += p.seconds;
  }
  return points_.empty() ? 0 : pages / seconds;
}

double DirtyModel::unsteadiness() const {
  double low = INFINITY, high = 0;
  for (size_t i = points_.size() > 3 ? points_.size() - 3 : 0; i < points_.size(); ++i) {
    const double level = (points_[i].pages + 1) / shape(points_[i].seconds, tau_);
    low = std::min(low, level);
    high = std::max(high, level);
  }
  return points_.empty() ? 1 : high / low;
}

}  // namespace migrate

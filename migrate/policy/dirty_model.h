// How many different pages a running tree writes in a given time, learned from the rounds.
#pragma once

#include <cstddef>
#include <deque>

namespace migrate {

/// Unique pages saturate: a tree that writes a working set of W pages over and over has written W of them after a
/// while, however long one waits. So pages(t) = W (1 - exp(-t / tau)); tau without bound is a constant rate. The shape
/// comes from the last rounds, which were of different lengths; the scale from the very last, since trees change.
class DirtyModel {
 public:
  /// `pages` different pages were found written in `seconds` (between two protecting scans).
  void add(double pages, double seconds);
  /// Forgets what was: the tree goes at another speed from now on.
  void clear() { points_.clear(); }
  /// Pages that are written in `seconds`; 0 as long as nothing was measured.
  double pages_in(double seconds) const;
  /// Of the last round, pages per second; a working set is written at least this fast.
  double rate() const;
  /// Of the rounds kept, pages per second. Below what is written, if rounds were long enough for pages to be written
  /// again.
  double mean_rate() const;
  bool empty() const { return points_.empty(); }
  /// Largest of the last few rounds over what the others made one expect: 1 for a steady writer, more for bursts.
  double unsteadiness() const;

 private:
  struct Point {
    double pages, seconds;
  };
  static double shape(double seconds, double tau);
  void fit();
  std::deque<Point> points_;  ///< the newest last
  double tau_ = 0;            ///< seconds
};

}  // namespace migrate

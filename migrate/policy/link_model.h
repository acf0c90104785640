// What the way to the destination takes: bytes per second and a constant a round.
#pragma once

#include <cstdint>

namespace migrate {

class LinkModel {
 public:
  /// A round: bytes on the wire, how long it took in all, and what the transport measured (bytes/s; 0: nothing).
  void add(double bytes, double seconds, double measured_bandwidth);
  double bandwidth() const;  ///< bytes per second
  double overhead() const { return overhead_; }
  double seconds_for(double bytes) const { return overhead_ + bytes / bandwidth(); }

 private:
  double seconds_per_byte_ = 0;  ///< of the rounds so far, older ones weigh less
  double overhead_ = 0.0005;     ///< scan, round trip: seconds that a round costs whatever it carries
};

}  // namespace migrate

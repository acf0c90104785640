// What the events of a migration tell, in the terms of the picture.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "migrate/report/report.h"

namespace migrate {

/// Times in seconds since the first event.
struct Story {
  struct Round {
    int64_t n = 0, pages = 0, zero_pages = 0, discarded = 0, bytes = 0, dirty_pages = 0;
    int64_t wire_bytes = 0;  ///< `bytes` as they were sent: compressed, where that was worth it
    double begin = 0, end = 0;
    double bandwidth = 0;   ///< bytes per second
    double dirty_rate = 0;  ///< pages per second
    double estimate = 0;    ///< downtime, seconds
  };
  struct Part {
    std::string name;
    double seconds = 0;
  };
  struct Throttle {
    double time = 0, share = 1;
  };
  struct StoppedSend {
    double begin = 0, end = 0;
    int64_t bytes = 0;
  };
  /// What came when the program ran at the destination.
  struct Late {
    struct Sample {
      double time = 0;
      int64_t left = 0;   ///< bytes
      double stalls = 0;  ///< seconds, in sum
    };
    double begin = 0;
    std::optional<double> end;  ///< nothing was missing any more
    int64_t pages = 0, pushed = 0, requested = 0;
    int64_t waited_for = 0, until_answer = 0, until_fill = 0;              ///< pages
    double median_wait = 0, wait_of_99 = 0, longest_wait = 0, stalls = 0;  ///< seconds
    std::vector<Sample> samples;
    std::vector<double> cuts;
  };
  std::string outcome;  ///< sentence of the last event
  bool moved = false;
  double length = 0;
  std::vector<Round> rounds;
  std::vector<Throttle> throttles;
  std::optional<double> limit;  ///< --max-downtime, seconds
  /// The tree stood still.
  std::optional<double> stopped_begin, stopped_end;
  std::optional<StoppedSend> stopped_send;
  int64_t stopped_wire_bytes = 0;
  std::optional<Late> late;
  std::vector<Part> parts;  ///< of the downtime, in order
  double first_time = 0;
  /// Whether pages went compressed.
  bool compressed() const;
  double downtime() const { return stopped_begin && stopped_end ? *stopped_end - *stopped_begin : 0; }
};

/// `samples`: progress events of the feed.
Story tell(const std::vector<ReportEvent>& events, const std::vector<ReportEvent>& samples = {});

/// A field as a number; nothing if it is missing or none.
std::optional<double> number(const ReportEvent& event, std::string_view field);

}  // namespace migrate

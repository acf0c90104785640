#include "migrate/report/story.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace migrate {
namespace {

/// The parts that `done` tells, in the order in which they happen.
constexpr std::array<std::pair<const char*, const char*>, 5> kParts{{{"freeze_ms", "freeze"},
                                                                     {"shells_ms", "shells"},
                                                                     {"pages_ms", "pages"},
                                                                     {"restore_ms", "restore"},
                                                                     {"handover_ms", "hand-over"}}};

/// Nothing that was measured is longer than years or more than exabytes; what is, must not break the picture.
constexpr double kMost = 1e18;

double value(const ReportEvent& e, std::string_view field) {
  return std::clamp(number(e, field).value_or(0), 0.0, kMost);
}

int64_t count(const ReportEvent& e, std::string_view field) { return static_cast<int64_t>(value(e, field)); }

Story::Round round_of(const ReportEvent& e, double time) {
  Story::Round r;
  r.n = count(e, number(e, "n") ? "n" : "round");
  r.pages = count(e, "pages");
  r.zero_pages = count(e, "zero_pages");
  r.discarded = count(e, "discarded");
  r.bytes = count(e, "bytes");
  r.wire_bytes = number(e, "wire_bytes") ? count(e, "wire_bytes") : r.bytes;
  r.dirty_pages = count(e, "dirty_pages");
  r.end = time;
  r.begin = std::max(0.0, time - value(e, "ms") / 1e3);
  r.bandwidth = value(e, "bandwidth");
  r.dirty_rate = value(e, "dirty_rate");
  r.estimate = value(e, "estimate_ms") / 1e3;
  return r;
}

void tell_done(Story& s, const ReportEvent& e) {
  for (const auto& [field, name] : kParts) {
    if (const auto ms = number(e, field); ms && *ms >= 0 && *ms < kMost) s.parts.push_back({name, *ms / 1e3});
  }
}

/// Where in the downtime the last pages went, from the parts before it.
void place_stopped_send(Story& s, int64_t bytes) {
  if (!s.stopped_begin) return;
  double at = *s.stopped_begin;
  for (const Story::Part& part : s.parts) {
    if (part.name == "pages") {
      s.stopped_send = {at, at + part.seconds, bytes};
      return;
    }
    at += part.seconds;
  }
}

void tell_late(Story& s, const ReportEvent& e, double time) {
  if (e.name == "switch") s.late = {.begin = time, .pages = count(e, "pages")};
  if (!s.late) return;
  if (e.name == "cut") s.late->cuts.push_back(time);
  if (e.name != "whole") return;
  Story::Late& late = *s.late;
  late.end = time;
  late.pushed = count(e, "pages_pushed");
  late.requested = count(e, "pages_requested");
  late.waited_for = count(e, "waited_for");
  late.until_answer = count(e, "waited_until_answer");
  late.until_fill = count(e, "waited_until_fill");
  late.median_wait = value(e, "wait_median_us") / 1e6;
  late.wait_of_99 = value(e, "wait_99_us") / 1e6;
  late.longest_wait = value(e, "wait_longest_us") / 1e6;
  late.stalls = value(e, "stalls_ms") / 1e3;
}

void tell_samples(Story& s, const std::vector<ReportEvent>& samples) {
  if (!s.late) return;
  for (const ReportEvent& e : samples) {
    const double time = std::clamp(e.time - s.first_time, 0.0, s.length);
    s.late->samples.push_back({time, count(e, "left"), value(e, "stalls_ms") / 1e3});
  }
  if (s.late->end) s.late->samples.push_back({*s.late->end, 0, s.late->stalls});
}

}  // namespace

bool Story::compressed() const {
  return (stopped_send && stopped_wire_bytes < stopped_send->bytes) ||
         std::any_of(rounds.begin(), rounds.end(), [](const Round& r) { return r.wire_bytes < r.bytes; });
}

std::optional<double> number(const ReportEvent& event, std::string_view field) {
  for (const auto& [name, v] : event.fields) {
    if (name != field) continue;
    if (const auto* i = std::get_if<int64_t>(&v)) return static_cast<double>(*i);
    if (const auto* d = std::get_if<double>(&v); d && std::isfinite(*d)) return *d;
  }
  return std::nullopt;
}

Story tell(const std::vector<ReportEvent>& events, const std::vector<ReportEvent>& samples) {
  Story s;
  if (events.empty()) return s;
  s.first_time = events.front().time;
  s.outcome = events.back().sentence;
  int64_t stopped_bytes = 0;
  bool ended = false;
  for (const ReportEvent& e : events) {
    const double time = std::clamp(e.time - s.first_time, 0.0, kMost);
    s.length = std::max(s.length, time);
    if (e.name == "round") s.rounds.push_back(round_of(e, time));
    if (e.name == "throttle") s.throttles.push_back({time, std::clamp(value(e, "cpu_share"), 0.0, 1.0)});
    if (e.name == "decide" && number(e, "limit_ms")) s.limit = value(e, "limit_ms") / 1e3;
    if (e.name == "freeze") s.stopped_begin = std::max(0.0, time - value(e, "freeze_ms") / 1e3);
    if (e.name == "pages") {
      stopped_bytes = count(e, "bytes");
      s.stopped_wire_bytes = number(e, "wire_bytes") ? count(e, "wire_bytes") : stopped_bytes;
    }
    if (e.name == "gate-open") {
      s.stopped_end = time;
      if (number(e, "downtime_ms")) s.stopped_begin = std::max(0.0, time - value(e, "downtime_ms") / 1e3);
    }
    tell_late(s, e, time);
    if (e.name == "failed" || e.name == "refused") ended = true;
    if (e.name == "done" && number(e, "downtime_ms")) {
      s.moved = true;
      tell_done(s, e);
    }
  }
  // Not moved: it stood still until it was let go.
  if (s.stopped_begin && !s.stopped_end && ended) s.stopped_end = s.length;
  if (!s.stopped_end) s.stopped_begin.reset();
  place_stopped_send(s, stopped_bytes);
  tell_samples(s, samples);
  return s;
}

}  // namespace migrate

#include "migrate/session/telling/events_rounds.h"

#include <cmath>
#include <cstdio>

#include "migrate/session/telling/events_pages.h"

namespace migrate {
namespace {

/// Two digits behind the point are all that these measurements are worth.
double hundredths(double value) { return std::round(value * 100) / 100; }

std::string fixed(double value, int digits) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

}  // namespace

std::string human_count(double count) {
  if (count >= 1e6) return fixed(count / 1e6, 1) + "M";
  if (count >= 1e4) return fixed(count / 1e3, 1) + "k";
  return fixed(count, 0);
}

void tell_round(Events& events, const RoundMeasure& m, const Decision& d, const RoundExtras& extras) {
  const double bandwidth =
      m.bandwidth > 0 ? m.bandwidth : (m.seconds > 0 ? static_cast<double>(m.bytes_sent) / m.seconds : 0);
  const uint64_t wire = extras.wire_bytes != 0 ? extras.wire_bytes : m.bytes_sent;
  const std::string on_wire = ratio_text(wire, m.bytes_sent);
  events.event("round",
               "round " + std::to_string(m.round) + ": " + human_bytes(m.bytes_sent) + " in " +
                   fixed(m.seconds * 1e3, 1) + " ms (" + per_second(bandwidth) + on_wire + "); meanwhile " +
                   std::to_string(m.dirty_pages) + " pages were written (" + human_count(d.dirty_rate) +
                   "/s); downtime now " + fixed(d.now.total() * 1e3, 1) + " ms",
               {{"n", int64_t{m.round}},
                {"pages", whole(m.pages_sent)},
                {"zero_pages", whole(extras.zero_pages)},
                {"discarded", whole(extras.discarded)},
                {"scan_us", extras.scan_us},
                {"visit_us", extras.visit_us},
                {"bytes", whole(m.bytes_sent)},
                {"wire_bytes", whole(wire)},
                {"ms", hundredths(m.seconds * 1e3)},
                {"bandwidth", hundredths(bandwidth)},
                {"dirty_pages", whole(m.dirty_pages)},
                {"dirty_rate", hundredths(d.dirty_rate)},
                {"estimate_ms", hundredths(d.now.total() * 1e3)}});
}

void tell_decision(Events& events, const Decision& d) {
  EventFields fields{{"decision", std::string(name_of(d.action))}, {"reason", d.reason}};
  for (const auto& [name, value] : numbers_of(d)) {
    // A rate of convergence and a share are small numbers; the others are milliseconds, pages and bytes.
    fields.emplace_back(name, name == "convergence" || name == "cpu_share" ? value : hundredths(value));
  }
  events.event("decide", std::string(name_of(d.action)) + ": " + d.reason, std::move(fields));
}

void tell_throttle(Events& events, double cpu_share, const std::string& how) {
  events.event("throttle",
               cpu_share >= 1 ? "the program has all its CPU time again"
                              : "the program gets " + fixed(cpu_share * 100, 0) + " % of its CPU time (" + how + ")",
               {{"cpu_share", cpu_share}, {"how", how}});
}

void show_round(Events& events, const RoundProgress& p) {
  std::string line = "round " + std::to_string(p.round) + ": " + human_bytes(p.bytes) + " of " +
                     human_bytes(p.total_bytes) + ", " + per_second(p.bandwidth) +
                     (p.wire_bytes != 0 ? ratio_text(p.wire_bytes, p.bytes) : "");
  EventFields fields{{"phase", "round " + std::to_string(p.round)},
                     {"n", int64_t{p.round}},
                     {"bytes", whole(p.bytes)},
                     {"total", whole(p.total_bytes)},
                     {"wire_bytes", whole(p.wire_bytes != 0 ? p.wire_bytes : p.bytes)},
                     {"bandwidth", hundredths(p.bandwidth)}};
  if (p.dirty_rate >= 0) {
    line += ", " + human_count(p.dirty_rate) + " pages/s written";
    fields.emplace_back("dirty_rate", hundredths(p.dirty_rate));
  }
  if (p.estimate_ms >= 0) {
    line += ", downtime ~" + fixed(p.estimate_ms, p.estimate_ms < 100 ? 1 : 0) + " ms";
    fields.emplace_back("estimate_ms", hundredths(p.estimate_ms));
  }
  events.progress("progress", line, std::move(fields));
}

}  // namespace migrate

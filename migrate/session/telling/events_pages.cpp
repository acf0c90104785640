#include "migrate/session/telling/events_pages.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace migrate {
namespace {

std::string text(const char* format, double value) {
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

/// Small ratios need a third digit.
double thousandths(double value) { return std::round(value * 1000) / 1000; }

}  // namespace

void tell_codec(Events& events, const CodecChange& c) {
  std::string sentence = "pages go " + (c.to.codec == PageCodec::raw ? "raw" : "packed with " + text_of(c.to)) + ", " +
                         c.why + ": ratio " + text("%.2f", c.ratio) + " at " + per_second(c.pack_rate);
  if (c.link_rate > 0) sentence += ", link " + per_second(c.link_rate);
  sentence += "; " + per_second(c.rate_before) + " a stream before, " + per_second(c.rate_after) + " expected";
  events.event("codec", sentence,
               {{"codec", text_of(c.to)},
                {"before", text_of(c.from)},
                {"why", c.why},
                {"ratio", thousandths(c.ratio)},
                {"pack_rate", std::round(c.pack_rate)},
                {"link_rate", std::round(c.link_rate)},
                {"rate_before", std::round(c.rate_before)},
                {"rate_after", std::round(c.rate_after)}});
}

void tell_codec(Events& events, const CodecChoice& choice, bool automatic, const std::string& why) {
  std::string sentence = choice.codec == PageCodec::raw ? "pages go raw" : "pages are packed with " + text_of(choice);
  if (automatic) sentence += " until packing measures better";
  if (!why.empty()) sentence += ", since " + why;
  EventFields fields{{"codec", text_of(choice)}, {"automatic", automatic}};
  if (!why.empty()) fields.emplace_back("why", why);
  events.event("codec", sentence, std::move(fields));
}

std::string ratio_text(uint64_t wire_bytes, uint64_t bytes) {
  if (bytes == 0 || wire_bytes >= bytes - bytes / 50) return {};
  return ", " + text("%.2f", static_cast<double>(wire_bytes) / static_cast<double>(bytes)) + " of it on the wire";
}

void show_pages(Events& events, const PageProgress& p) {
  events.progress("progress",
                  "pages " + human_bytes(p.bytes) + " of " + human_bytes(p.total_bytes) + ", " +
                      per_second(p.bandwidth) + ratio_text(p.wire_bytes, p.bytes),
                  {{"phase", std::string("pages")},
                   {"bytes", whole(p.bytes)},
                   {"total", whole(p.total_bytes)},
                   {"wire_bytes", whole(p.wire_bytes)},
                   {"bandwidth", std::round(p.bandwidth)}});
}

}  // namespace migrate

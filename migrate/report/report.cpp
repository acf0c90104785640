#include "migrate/report/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/base/fd.h"
#include "migrate/report/pictures.h"
#include "migrate/report/svg.h"
#include "migrate/report/text.h"

namespace migrate {
namespace {

constexpr size_t kMostEvents = 10'000, kMostSamples = 1'000;

bool is_of_feed(const ReportFields& fields) {
  return std::ranges::any_of(fields, [](const auto& f) {
    const auto* text = std::get_if<std::string>(&f.second);
    return f.first == "phase" && text != nullptr && *text == "feed";
  });
}

constexpr const char* kStyle = R"css(
:root { --fg: #1c2330; --dim: #5d6675; --bg: #ffffff; --panel: #f4f6f9; --grid: #dde2ea; --round: #3f7fcf;
  --last: #c8553d; --stopped: #c8553d33; --written: #8250c4; --estimate: #1f8a5b; --late: #0d7f8c; --in: #ffffff;
  --p0: #3f7fcf; --p1: #7a6ad0; --p2: #c8553d; --p3: #1f8a5b; --p4: #94701c; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e4e8ef; --dim: #9aa4b4; --bg: #14181f; --panel: #1d232d; --grid: #323a47; --round: #4d8fe0;
    --last: #e07a5f; --stopped: #e07a5f40; --written: #b48cf0; --estimate: #4cc38a; --late: #4fc3d0; --in: #0d1117;
    --p0: #6aa5ee; --p1: #a195ee; --p2: #ee937b; --p3: #5fd19c; --p4: #d9b04a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 1000px;
  margin: 24px auto; padding: 0 20px; }
h1 { font-size: 21px; margin: 0 0 14px; overflow-wrap: anywhere; } h2 { font-size: 16px; margin: 30px 0 8px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; }
.tiles div { background: var(--panel); border-radius: 8px; padding: 8px 16px; }
.tiles b { display: block; font-size: 19px; } .tiles span, .legend { color: var(--dim); font-size: 13px; }
.legend span { margin-right: 18px; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; vertical-align: -1px; }
svg { width: 100%; height: auto; background: var(--panel); border-radius: 8px; margin-top: 6px; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); } svg .title { fill: var(--fg); font-weight: 600; }
svg .inside { fill: var(--in); } .axis { stroke: var(--dim); } .grid { stroke: var(--grid); }
rect.round { fill: var(--round); } rect.last { fill: var(--last); } rect.stopped { fill: var(--stopped); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } polyline.written { stroke: var(--written); }
polyline.estimate { stroke: var(--estimate); } polyline.late { stroke: var(--late); } circle.estimate { fill: var(--estimate); }
circle.outcome { fill: var(--last); } .limit { stroke: var(--dim); stroke-dasharray: 6 4; }
.throttle { stroke: var(--dim); stroke-dasharray: 2 3; }
rect.part0, i.part0 { fill: var(--p0); background: var(--p0); } rect.part1, i.part1 { fill: var(--p1); background: var(--p1); }
rect.part2, i.part2 { fill: var(--p2); background: var(--p2); } rect.part3, i.part3 { fill: var(--p3); background: var(--p3); }
rect.part4, i.part4 { fill: var(--p4); background: var(--p4); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--dim); font-weight: 600; } td { overflow-wrap: anywhere; }
.scroll svg { min-width: 700px; } i.dot { border-radius: 50%; }
.events td:nth-child(2) { white-space: nowrap; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
)css";

std::string cell(const std::string& text, bool number) {
  return std::string(number ? "<td class=\"n\">" : "<td>") + escape_xml(text) + "</td>";
}

std::string tile(const std::string& value, const std::string& name) {
  return "<div><b>" + escape_xml(value) + "</b><span>" + escape_xml(name) + "</span></div>\n";
}

std::string key(const std::string& css, const std::string& text, bool dot = false) {
  return std::string("<span><i") + (dot ? " class=\"dot\"" : "") + " style=\"background: var(--" + css + ")\"></i>" +
         escape_xml(text) + "</span>\n";
}

std::string tiles(const Story& s) {
  std::string out = "<div class=\"tiles\">\n";
  if (s.stopped_end) out += tile(short_seconds(s.downtime()), s.moved ? "downtime" : "stood still");
  if (!s.rounds.empty()) out += tile(short_seconds(s.rounds.back().estimate), "estimated after the last round");
  out += tile(short_seconds(s.length), "in all");
  int64_t bytes = s.stopped_send ? s.stopped_send->bytes : 0, wire_bytes = s.stopped_wire_bytes;
  for (const auto& r : s.rounds) bytes += r.bytes, wire_bytes += r.wire_bytes;
  if (bytes > 0) out += tile(short_bytes(static_cast<double>(bytes)), "sent");
  if (bytes > 0 && s.compressed()) out += tile(short_bytes(static_cast<double>(wire_bytes)), "of it on the wire");
  if (!s.rounds.empty()) out += tile(std::to_string(s.rounds.size()), "rounds");
  if (s.late) out += tile(short_bytes(static_cast<double>(s.late->pages) * 4096), "came when it ran there");
  if (s.late && s.late->end) out += tile(short_seconds(s.late->stalls), "waits over 3 ms, in sum");
  return out + "</div>\n";
}

std::string time_line(const Story& s) {
  const std::string picture = draw_time_line(s);
  if (picture.empty()) return {};
  std::string out = "<h2>Time line</h2>\n<p class=\"legend\">";
  if (!s.rounds.empty()) out += key("round", "round, while the program runs");
  if (s.stopped_send) out += key("last", "sent while it is stopped");
  if (s.stopped_end) out += key("stopped", "program stopped");
  if (!s.rounds.empty()) out += key("written", "pages written") + key("estimate", "estimated downtime");
  if (s.late) out += key("late", "still to come") + key("last", "waits over 3 ms, a second");
  if (!s.rounds.empty() && s.moved) out += key("last", "the downtime as it was", true);
  return out + "</p>\n<div class=\"scroll\">" + picture + "</div>\n";
}

std::string downtime(const Story& s) {
  const std::string picture = draw_downtime(s);
  if (picture.empty()) return {};
  std::string out = "<h2>The downtime</h2>\n<p class=\"legend\">";
  for (size_t i = 0; i < s.parts.size(); ++i) {
    out += "<span><i class=\"part" + std::to_string(i % 5) + "\"></i>" + escape_xml(s.parts[i].name) + " " +
           escape_xml(short_seconds(s.parts[i].seconds)) + "</span>\n";
  }
  return out + "</p>\n<div class=\"scroll\">" + picture + "</div>\n";
}

std::string rounds_table(const Story& s) {
  if (s.rounds.empty()) return {};
  std::string out = "<h2>Rounds</h2>\n<div class=\"scroll\"><table><tr>";
  for (const char* head : {"round", "began", "took", "pages", "of them zero", "discarded", "bytes", "on the wire",
                           "bandwidth", "written meanwhile", "pages/s", "downtime if stopped"}) {
    if (head == std::string("on the wire") && !s.compressed()) continue;
    out += "<th class=\"n\">" + std::string(head) + "</th>";
  }
  out += "</tr>\n";
  for (const auto& r : s.rounds) {
    out += "<tr>" + cell(std::to_string(r.n), true) + cell(short_seconds(r.begin), true) +
           cell(short_seconds(r.end - r.begin), true) + cell(std::to_string(r.pages), true) +
           cell(std::to_string(r.zero_pages), true) + cell(std::to_string(r.discarded), true) +
           cell(short_bytes(static_cast<double>(r.bytes)), true) +
           (s.compressed() ? cell(short_bytes(static_cast<double>(r.wire_bytes)), true) : "") +
           cell(short_bytes(r.bandwidth) + "/s", true) + cell(std::to_string(r.dirty_pages), true) +
           cell(short_number(std::round(r.dirty_rate)), true) + cell(short_seconds(r.estimate), true) + "</tr>\n";
  }
  return out + "</table></div>\n";
}

std::string late_table(const Story& s) {
  if (!s.late || !s.late->end) return {};
  const Story::Late& late = *s.late;
  std::string out = "<h2>Pages that came when it ran there</h2>\n<div class=\"scroll\"><table>\n";
  const auto row = [&](const std::string& what, const std::string& value) {
    out += "<tr>" + cell(what, false) + cell(value, true) + "</tr>\n";
  };
  row("missing at the switch", std::to_string(late.pages) + " pages");
  row("pushed by the source", std::to_string(late.pushed) + " pages");
  row("asked for, since somebody waited", std::to_string(late.requested) + " pages");
  row("waited for", std::to_string(late.waited_for) + " pages");
  row("of these, came as an answer", std::to_string(late.until_answer) + " pages");
  row("of these, came with what was pushed", std::to_string(late.until_fill) + " pages");
  row("wait: median", short_seconds(late.median_wait));
  row("wait: 99 of 100 at most", short_seconds(late.wait_of_99));
  row("wait: longest", short_seconds(late.longest_wait));
  row("waits over 3 ms, in sum", short_seconds(late.stalls));
  row("whole after", short_seconds(*late.end - late.begin));
  return out + "</table></div>\n";
}

std::string events_table(const std::vector<ReportEvent>& events) {
  std::string out =
      "<h2>Events</h2>\n<div class=\"scroll\"><table class=\"events\"><tr><th class=\"n\">time, "
      "s</th><th>event</th><th>what</th></tr>\n";
  for (const ReportEvent& e : events) {
    std::array<char, 48> time{};
    std::snprintf(time.data(), time.size(), "%.4f", e.time - events.front().time);
    out += "<tr>" + cell(time.data(), true) + cell(e.name, false) + cell(e.sentence, false) + "</tr>\n";
  }
  return out + "</table></div>\n";
}

ReportValue value_of(const nlohmann::json& j) {
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_integer()) return j.get<int64_t>();
  if (j.is_number()) return j.get<double>();
  if (j.is_string()) return j.get<std::string>();
  return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

void Report::add(std::string_view name, const std::string& sentence, const ReportFields& fields, double time) {
  ReportEvent event{std::string(name), sentence, fields, std::isfinite(time) ? time : 0};
  if (name == "progress") {
    if (is_of_feed(fields)) add_sample(std::move(event));
  } else if (events_.size() < kMostEvents) {
    events_.push_back(std::move(event));
  }
}

/// However long a feed takes: when there are too many, every second one goes, and later ones are taken half as often.
void Report::add_sample(ReportEvent event) {
  if (samples_seen_++ % every_ != 0) return;
  samples_.push_back(std::move(event));
  if (samples_.size() < kMostSamples) return;
  for (size_t i = 0; 2 * i < samples_.size(); ++i) samples_[i] = std::move(samples_[2 * i]);
  samples_.resize((samples_.size() + 1) / 2);
  every_ *= 2;
}

bool Report::add_json(std::string_view line) {
  const auto j = nlohmann::json::parse(line, nullptr, false);
  const auto is = [&](const char* field, bool text) {
    return j.contains(field) && (text ? j[field].is_string() : j[field].is_number());
  };
  if (!j.is_object() || !is("event", true) || !is("text", true) || !is("time", false)) return false;
  ReportFields fields;
  for (const auto& [name, v] : j.items()) {
    if (name != "event" && name != "text" && name != "time" && name != "side") fields.emplace_back(name, value_of(v));
  }
  add(j["event"].get<std::string>(), j["text"].get<std::string>(), fields, j["time"].get<double>());
  return true;
}

std::string Report::html() const {
  const Story story = tell(events_, samples_);
  const std::string title = events_.empty() ? "a migration that has not begun" : story.outcome;
  return "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta "
         "charset=\"utf-8\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width\"/>\n<meta http-equiv=\"Content-Security-Policy\" "
         "content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n<title>migrate: " +
         escape_xml(printable_text(title, 120)) + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n<h1>" +
         escape_xml(title) + "</h1>\n" + tiles(story) + time_line(story) + downtime(story) + rounds_table(story) +
         late_table(story) + events_table(events_) + "</body>\n</html>\n";
}

void Report::write(const std::string& path) const {
  const std::string page = html();
  const Fd fd = open_path(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  write_full(fd.get(), as_bytes_of(page), path);
}

}  // namespace migrate

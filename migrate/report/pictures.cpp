#include "migrate/report/pictures.h"

#include <algorithm>
#include <cmath>

#include "migrate/report/svg.h"

namespace migrate {
namespace {

constexpr double kWidth = 960, kLeft = 78, kRight = 940;
constexpr double kPanel = 120, kGap = 46, kTop = 30;  ///< heights
constexpr double kGapForLabel = 8;

struct Unit {
  const char* name;
  double size;
};

Unit bytes_unit(double most) {
  if (most >= (1 << 30)) return {"GiB/s", 1 << 30};
  if (most >= (1 << 20)) return {"MiB/s", 1 << 20};
  return {"KiB/s", 1024};
}

Unit pages_unit(double most) {
  if (most >= 1e6) return {"million pages/s", 1e6};
  if (most >= 1e4) return {"thousand pages/s", 1e3};
  return {"pages/s", 1};
}

/// A plot of the time line: title, frame, ticks of its own y axis.
struct Panel {
  double top;
  Axis y;
  double bottom() const { return top + kPanel; }
  static Axis axis(double most, double top) { return Axis::linear(most, top + kPanel, top, 4); }
};

void frame(Svg& svg, const Panel& panel, const std::string& title) {
  svg.text(kLeft, panel.top - 9, title, "start", "title");
  for (const double tick : panel.y.ticks()) {
    const double y = panel.y.at(tick);
    svg.line(kLeft, y, kRight, y, "grid");
    svg.text(kLeft - kGapForLabel, y + 4, short_number(tick), "end");
  }
  svg.line(kLeft, panel.top, kLeft, panel.bottom(), "axis");
  svg.line(kLeft, panel.bottom(), kRight, panel.bottom(), "axis");
}

class TimeLine {
 public:
  explicit TimeLine(const Story& story)
      : story_(story),
        x_(Axis::linear(std::max(story.length, 1e-3), kLeft, kRight, 10)),
        svg_(kWidth, height(story), "time line of the migration") {}

  std::string draw() {
    double top = kTop;
    bandwidth(top);
    if (!story_.rounds.empty()) {
      top += kPanel + kGap;
      written(top);
      top += kPanel + kGap;
      estimate(top);
    }
    if (has_late(story_)) {
      top += kPanel + kGap;
      still_to_come(top);
      top += kPanel + kGap;
      stalls(top);
    }
    time_axis(top + kPanel);
    return svg_.finish();
  }

 private:
  static double height(const Story& story) {
    const double panels = (story.rounds.empty() ? 1 : 3) + (has_late(story) ? 2 : 0);
    return kTop + panels * kPanel + (panels - 1) * kGap + 46;
  }

  static bool has_late(const Story& story) { return story.late && !story.late->samples.empty(); }

  void cuts(const Panel& panel) {
    for (const double time : story_.late->cuts) {
      const double x = x_.at(time);
      svg_.line(x, panel.top, x, panel.bottom(), "throttle");
      svg_.text(std::min(x + 4, kRight - text_width("cut")), panel.top + 11, "cut", "start");
    }
  }

  void still_to_come(double top) {
    const Story::Late& late = *story_.late;
    const double all = std::min(static_cast<double>(late.pages) * 4096, 1e18);
    double most = all;
    for (const auto& s : late.samples) most = std::max(most, static_cast<double>(s.left));
    const Unit unit = most >= (1 << 30)   ? Unit{"GiB", 1 << 30}
                      : most >= (1 << 20) ? Unit{"MiB", 1 << 20}
                                          : Unit{"KiB", 1024};
    const Panel panel{top, Panel::axis(most / unit.size, top)};
    band(panel);
    frame(svg_, panel, std::string("still to come when it runs there, ") + unit.name);
    std::vector<std::pair<double, double>> points{{x_.at(late.begin), panel.y.at(all / unit.size)}};
    for (const auto& s : late.samples)
      points.emplace_back(x_.at(s.time), panel.y.at(static_cast<double>(s.left) / unit.size));
    svg_.path(points, "late");
    cuts(panel);
  }

  /// How much of each step somebody waited for long: more than all of it, where several wait.
  void stalls(double top) {
    const Story::Late& late = *story_.late;
    struct Step {
      double begin, end, ms;
    };
    std::vector<Step> steps;
    double at = late.begin, before = 0, most = 1;
    for (const auto& s : late.samples) {
      const double seconds = std::max(s.time - at, 1e-3);
      if (s.stalls > before) steps.push_back({at, s.time, (s.stalls - before) * 1e3 / seconds});
      if (!steps.empty()) most = std::max(most, steps.back().ms);
      at = s.time, before = s.stalls;
    }
    const Panel panel{top, Panel::axis(most, top)};
    band(panel);
    frame(svg_, panel, "waits for pages of over 3 ms, ms a second");
    for (const Step& step : steps)
      bar(panel, step.begin, step.end, step.ms, "", "last", short_number(std::round(step.ms)) + " ms a second");
    cuts(panel);
  }

  void band(const Panel& panel) {
    if (!story_.stopped_begin) return;
    const double from = x_.at(*story_.stopped_begin), to = x_.at(*story_.stopped_end);
    svg_.rect(from, panel.top, std::max(to - from, 1.5), kPanel, "stopped",
              "the program stood still for " + short_seconds(story_.downtime()));
  }

  void bar(const Panel& panel, double begin, double end, double rate, const std::string& label, const char* css_class,
           const std::string& tip) {
    const double from = x_.at(begin), to = std::max(x_.at(end), from + 1);
    const double y = panel.y.at(rate);
    svg_.rect(from, y, std::max(to - from - 0.5, 1.0), panel.bottom() - y, css_class, tip);
    if (text_width(label) + 8 < to - from && panel.bottom() - y > 18) {
      svg_.text((from + to) / 2, panel.bottom() - 6, label, "middle", "inside");
    }
  }

  /// Of the whole round: its bandwidth leaves out what is not transport.
  static double rate_of(const Story::Round& r) {
    return std::min(static_cast<double>(r.bytes) / std::max(r.end - r.begin, 1e-6), 1e18);
  }

  void bandwidth(double top) {
    const auto& send = story_.stopped_send;
    const double stopped_rate = send ? static_cast<double>(send->bytes) / std::max(send->end - send->begin, 1e-6) : 0;
    double most = stopped_rate;
    for (const auto& r : story_.rounds) most = std::max(most, rate_of(r));
    const Unit unit = bytes_unit(most);
    const Panel panel{top, Panel::axis(most / unit.size, top)};
    band(panel);
    frame(svg_, panel, "sent, " + std::string(unit.name).append(" (a bar's area is its bytes)"));
    for (const auto& r : story_.rounds) {
      bar(panel, r.begin, r.end, rate_of(r) / unit.size,
          std::to_string(r.n) + ": " + short_bytes(static_cast<double>(r.bytes)), "round",
          "round " + std::to_string(r.n) + ": " + short_bytes(static_cast<double>(r.bytes)) + " in " +
              short_seconds(r.end - r.begin));
    }
    if (send) {
      bar(panel, send->begin, send->end, stopped_rate / unit.size, short_bytes(static_cast<double>(send->bytes)),
          "last",
          "while stopped: " + short_bytes(static_cast<double>(send->bytes)) + " in " +
              short_seconds(send->end - send->begin));
    }
  }

  void written(double top) {
    double most = 0;
    for (const auto& r : story_.rounds) most = std::max(most, r.dirty_rate);
    const Unit unit = pages_unit(most);
    const Panel panel{top, Panel::axis(most / unit.size, top)};
    band(panel);
    frame(svg_, panel, std::string("written by the program, ") + unit.name);
    std::vector<std::pair<double, double>> steps;
    for (const auto& r : story_.rounds) {
      const double y = panel.y.at(r.dirty_rate / unit.size);
      steps.emplace_back(x_.at(r.begin), y);
      steps.emplace_back(x_.at(r.end), y);
    }
    svg_.path(steps, "written");
    throttles(panel);
  }

  void throttles(const Panel& panel) {
    double free_from = kLeft;
    for (const auto& t : story_.throttles) {
      const double x = x_.at(t.time);
      svg_.line(x, panel.top, x, panel.bottom(), "throttle");
      const std::string label = "CPU " + short_number(std::round(t.share * 100)) + " %";
      const double from = std::min(x + 4, kRight - text_width(label));
      if (from < free_from) continue;  // it would lie over the one before
      svg_.text(from, panel.top + 11, label, "start");
      free_from = from + text_width(label) + 4;
    }
  }

  void estimate(double top) {
    double most = std::max(story_.downtime(), story_.limit.value_or(0)), least = INFINITY;
    for (const auto& r : story_.rounds) {
      most = std::max(most, r.estimate);
      if (r.estimate > 0) least = std::min(least, r.estimate);
    }
    if (story_.downtime() > 0) least = std::min(least, story_.downtime());
    const bool wide = std::isfinite(least) && most > 30 * least;
    const Panel panel{
        top, wide ? Axis::logarithmic(least * 1e3, most * 1e3, top + kPanel, top) : Panel::axis(most * 1e3, top)};
    band(panel);
    frame(svg_, panel, "downtime if stopped now (estimate), ms");
    if (story_.limit) {
      const double y = panel.y.at(*story_.limit * 1e3);
      svg_.line(kLeft, y, kRight, y, "limit");
      svg_.text(kLeft + 6, y > top + 18 ? y - 5 : y + 14, "limit " + short_seconds(*story_.limit), "start");
    }
    std::vector<std::pair<double, double>> points;
    for (const auto& r : story_.rounds) points.emplace_back(x_.at(r.end), panel.y.at(r.estimate * 1e3));
    svg_.path(points, "estimate");
    for (size_t i = 0; i < points.size(); ++i) {
      svg_.dot(points[i].first, points[i].second, 3, "estimate",
               "after round " + std::to_string(story_.rounds[i].n) + ": " + short_seconds(story_.rounds[i].estimate));
    }
    outcome(panel);
  }

  void outcome(const Panel& panel) {
    if (!story_.moved || !story_.stopped_end) return;
    const double x = x_.at(*story_.stopped_end), y = panel.y.at(story_.downtime() * 1e3);
    const std::string label = "was " + short_seconds(story_.downtime());
    svg_.dot(x, y, 5, "outcome", label);
    // Apart from the line of estimates, which ends somewhere near.
    const double last = story_.rounds.empty() ? panel.bottom() : panel.y.at(story_.rounds.back().estimate * 1e3);
    const bool above = std::min(last, y) > panel.top + kPanel / 3;
    const bool left = x + 10 + text_width(label) > kRight;
    svg_.text(left ? x - 10 : x + 10, above ? panel.top + 13 : panel.bottom() - 8, label, left ? "end" : "start");
  }

  void time_axis(double bottom) {
    const bool short_one = x_.most() < 0.5;
    for (const double tick : x_.ticks()) {
      svg_.line(x_.at(tick), bottom, x_.at(tick), bottom + 5, "axis");
      svg_.text(x_.at(tick), bottom + 19, short_number(short_one ? tick * 1e3 : tick), "middle");
    }
    svg_.text((kLeft + kRight) / 2, bottom + 38, short_one ? "time, ms" : "time, s", "middle");
  }

  const Story& story_;
  Axis x_;
  Svg svg_;
};

}  // namespace

std::string draw_time_line(const Story& story) {
  if (story.rounds.empty() && !story.stopped_send && !story.late) return {};
  return TimeLine(story).draw();
}

std::string draw_downtime(const Story& story) {
  double total = 0;
  for (const auto& part : story.parts) total += part.seconds;
  if (!(total > 0)) return {};
  constexpr double kBarTop = 12, kBarBottom = 56;
  Svg svg(kWidth, 104, "the downtime and its parts");
  const Axis x = Axis::linear(total * 1e3, kLeft, kRight, 10);
  double at = 0;
  for (size_t i = 0; i < story.parts.size(); ++i) {
    const auto& part = story.parts[i];
    const double from = x.at(at * 1e3), to = x.at((at + part.seconds) * 1e3);
    const std::string value = short_seconds(part.seconds);
    svg.rect(from, kBarTop, to - from, kBarBottom - kBarTop, "part part" + std::to_string(i % 5),
             part.name + " " + value);
    if (text_width(part.name) + 8 < to - from && text_width(value) + 8 < to - from) {
      svg.text((from + to) / 2, kBarTop + 19, part.name, "middle", "inside");
      svg.text((from + to) / 2, kBarTop + 35, value, "middle", "inside");
    }
    at += part.seconds;
  }
  svg.line(kLeft, kBarBottom + 6, kRight, kBarBottom + 6, "axis");
  for (const double tick : x.ticks()) {
    svg.line(x.at(tick), kBarBottom + 6, x.at(tick), kBarBottom + 11, "axis");
    svg.text(x.at(tick), kBarBottom + 25, short_number(tick), "middle");
  }
  svg.text((kLeft + kRight) / 2, kBarBottom + 43, "ms since the freeze began", "middle");
  return svg.finish();
}

}  // namespace migrate

// Scales and shapes for the pictures of a report.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace migrate {

/// Maps values to pixels along one axis and chooses round numbers for its ticks.
class Axis {
 public:
  /// From `low` (pixels) for 0 to `high` for at least `most`; `ticks` is about how many.
  static Axis linear(double most, double low, double high, int ticks);
  /// Decades that hold `least` to `most`, both over 0.
  static Axis logarithmic(double least, double most, double low, double high);
  double at(double value) const;  ///< in pixels, within the axis
  const std::vector<double>& ticks() const { return ticks_; }
  double most() const { return most_; }

 private:
  bool log_ = false;
  double least_ = 0, most_ = 1, low_ = 0, high_ = 1;
  std::vector<double> ticks_;
};

/// Elements, one after the other. Classes are styled by the page; text is escaped here.
class Svg {
 public:
  Svg(double width, double height, std::string_view title);
  void rect(double x, double y, double width, double height, std::string_view css_class, std::string_view tip = {});
  void line(double x1, double y1, double x2, double y2, std::string_view css_class);
  void path(const std::vector<std::pair<double, double>>& points, std::string_view css_class);
  void dot(double x, double y, double radius, std::string_view css_class, std::string_view tip = {});
  /// `anchor`: start, middle or end.
  void text(double x, double y, std::string_view text, std::string_view anchor, std::string_view css_class = "label");
  std::string finish();

 private:
  std::string out_;
};

/// About how wide text of the pictures is, in pixels.
double text_width(std::string_view text);
/// As few digits as tell it: "0.5", "20", "1.25".
std::string short_number(double value);
/// "950 µs", "12.3 ms", "1.25 s".
std::string short_seconds(double seconds);
/// "512 KiB", "1.5 GiB".
std::string short_bytes(double bytes);

}  // namespace migrate

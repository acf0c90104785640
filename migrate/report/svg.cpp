#include "migrate/report/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "migrate/report/text.h"

namespace migrate {
namespace {

constexpr double kLetter = 6.6;  ///< pixels, of the pictures' 12 pixel text

std::string format(const char* pattern, double value) {
  char text[48];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string px(double value) { return format("%.1f", std::isfinite(value) ? value : 0); }

std::string attribute(std::string_view name, std::string_view value) {
  return " " + std::string(name) + "=\"" + escape_xml(value) + "\"";
}

std::string close(std::string_view element, std::string_view tip) {
  if (tip.empty()) return "/>\n";
  return "><title>" + escape_xml(tip) + "</title></" + std::string(element) + ">\n";
}

}  // namespace

Axis Axis::linear(double most, double low, double high, int ticks) {
  Axis a;
  a.low_ = low, a.high_ = high;
  if (!(most > 0) || !std::isfinite(most)) most = 1;
  const double rough = most / std::max(ticks, 1);
  const double decade = std::pow(10, std::floor(std::log10(rough)));
  double step = decade * 10;
  for (const double times : {1.0, 2.0, 5.0}) {
    if (decade * times >= rough * 0.999) {
      step = decade * times;
      break;
    }
  }
  const int steps = static_cast<int>(std::ceil(most / step * 0.9999));
  for (int i = 0; i <= steps; ++i) a.ticks_.push_back(i * step);
  a.most_ = steps * step;
  return a;
}

Axis Axis::logarithmic(double least, double most, double low, double high) {
  Axis a;
  a.log_ = true;
  a.low_ = low, a.high_ = high;
  const auto sane = [](double v) { return std::isfinite(v) && v > 1e-12 ? std::min(v, 1e18) : 1e-12; };
  const double from = std::floor(std::log10(sane(least)) + 1e-9), to = std::ceil(std::log10(sane(most)) - 1e-9);
  a.least_ = std::pow(10, from);
  a.most_ = std::pow(10, std::max(to, from + 1));
  for (double e = from; e <= std::max(to, from + 1); ++e) a.ticks_.push_back(std::pow(10, e));
  return a;
}

double Axis::at(double value) const {
  const double share = log_ ? std::log(std::max(value, least_) / least_) / std::log(most_ / least_) : value / most_;
  return low_ + std::clamp(share, 0.0, 1.0) * (high_ - low_);
}

Svg::Svg(double width, double height, std::string_view title) {
  out_ = "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 " + px(width) + " " + px(height) + "\"" +
         attribute("aria-label", title) + ">\n";
}

void Svg::rect(double x, double y, double width, double height, std::string_view css_class, std::string_view tip) {
  out_ += "<rect x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"" + px(std::max(width, 0.0)) + "\" height=\"" +
          px(std::max(height, 0.0)) + "\"" + attribute("class", css_class) + close("rect", tip);
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view css_class) {
  out_ += "<line x1=\"" + px(x1) + "\" y1=\"" + px(y1) + "\" x2=\"" + px(x2) + "\" y2=\"" + px(y2) + "\"" +
          attribute("class", css_class) + "/>\n";
}

void Svg::path(const std::vector<std::pair<double, double>>& points, std::string_view css_class) {
  if (points.empty()) return;
  std::string list;
  for (const auto& [x, y] : points) list += px(x) + "," + px(y) + " ";
  list.pop_back();
  out_ += "<polyline points=\"" + list + "\"" + attribute("class", css_class) + "/>\n";
}

void Svg::dot(double x, double y, double radius, std::string_view css_class, std::string_view tip) {
  out_ += "<circle cx=\"" + px(x) + "\" cy=\"" + px(y) + "\" r=\"" + px(radius) + "\"" + attribute("class", css_class) +
          close("circle", tip);
}

void Svg::text(double x, double y, std::string_view text, std::string_view anchor, std::string_view css_class) {
  out_ += "<text x=\"" + px(x) + "\" y=\"" + px(y) + "\"" + attribute("text-anchor", anchor) +
          attribute("class", css_class) + ">" + escape_xml(text) + "</text>\n";
}

std::string Svg::finish() { return out_ + "</svg>\n"; }

double text_width(std::string_view text) {
  const auto letters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
  return static_cast<double>(letters) * kLetter;
}

std::string short_number(double value) {
  if (value != 0 && std::abs(value) < 1e-3) return format("%.1e", value);
  std::string text = format(std::abs(value) < 1 ? "%.3f" : std::abs(value) < 100 ? "%.2f" : "%.0f", value);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

std::string short_seconds(double seconds) {
  if (seconds < 0.9995e-3) return short_number(std::round(seconds * 1e6)) + " µs";
  if (seconds < 0.9995) return short_number(std::round(seconds * 1e4) / 10) + " ms";
  return short_number(std::round(seconds * 100) / 100) + " s";
}

std::string short_bytes(double bytes) {
  if (bytes < (1 << 20)) return short_number(std::round(bytes / 102.4) / 10) + " KiB";
  if (bytes < (1 << 30)) return short_number(std::round(bytes / (1 << 20) * 10) / 10) + " MiB";
  return short_number(std::round(bytes / (1 << 30) * 100) / 100) + " GiB";
}

}  // namespace migrate

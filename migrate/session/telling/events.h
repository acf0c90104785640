// What a migration tells people: named events with values, as lines on standard error; if that is a terminal, with one
// live line below them. With --json one object a line on standard output.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "migrate/session/base/options.h"

namespace migrate {

class Report;

using EventValue = std::variant<int64_t, double, bool, std::string>;
using EventFields = std::vector<std::pair<std::string, EventValue>>;

class Events {
 public:
  virtual ~Events() = default;
  /// A step that happened. `sentence` is for people, `fields` for programs.
  virtual void event(std::string_view name, const std::string& sentence, EventFields fields = {}) = 0;
  /// How far the running phase is: the live line of a terminal, at most ten times a second; in JSON once a second.
  virtual void progress(std::string_view name, const std::string& sentence, EventFields fields = {}) = 0;
};

/// Never throws for a closed output. What is not printable (names of tasks and peers are not ours) is replaced by '?'
/// on standard error; a live line is cut to the terminal's width, so that it stays one line.
class PrintedEvents final : public Events {
 public:
  /// `live`: whether a live line is wanted; not where several processes share the terminal.
  PrintedEvents(ReportFormat format, std::string side, bool live = true);
  ~PrintedEvents() override;
  void event(std::string_view name, const std::string& sentence, EventFields fields) override;
  void progress(std::string_view name, const std::string& sentence, EventFields fields) override;

 private:
  void clear_live();
  void print_json(std::string_view name, const std::string& sentence, const EventFields& fields);
  ReportFormat format_;
  std::string side_;
  bool tty_;
  bool live_ = false;
  std::chrono::steady_clock::time_point last_progress_{};
};

/// Passes everything on and keeps it for a report as well.
class ReportedEvents final : public Events {
 public:
  /// Both must outlive this.
  ReportedEvents(Events& next, Report& report) : next_(next), report_(report) {}
  void event(std::string_view name, const std::string& sentence, EventFields fields) override;
  void progress(std::string_view name, const std::string& sentence, EventFields fields) override;

 private:
  Events& next_;
  Report& report_;
};

std::string human_bytes(uint64_t bytes);
/// "1.2 GiB/s"; what is less than nothing is nothing.
std::string per_second(double bytes);
/// For a field of an event, which has a sign.
inline int64_t whole(uint64_t value) { return static_cast<int64_t>(value); }

}  // namespace migrate

#include "migrate/session/telling/events.h"

#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "migrate/report/report.h"
#include "migrate/report/text.h"

namespace migrate {
namespace {

constexpr std::chrono::milliseconds kProgressPeriod{100};
constexpr std::chrono::milliseconds kRecordedPeriod{1000};

void put(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n <= 0) return;  // nobody reads: the migration goes on
    done += static_cast<size_t>(n);
  }
}

double realtime() {
  timespec t{};
  ::clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9;
}

/// Asked each time, since it changes while a move runs.
size_t terminal_width() {
  winsize size{};
  if (::ioctl(2, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
    return 79;              // a terminal that does not know, as on a serial line
  return size.ws_col - 1u;  // a character in the last column makes some terminals go to the next line
}

/// Terminals that cannot erase a line get none that moves.
bool can_erase_lines() {
  const char* type = ::getenv("TERM");
  return type == nullptr || std::string_view(type) != "dumb";
}

}  // namespace

void ReportedEvents::event(std::string_view name, const std::string& sentence, EventFields fields) {
  report_.add(name, sentence, fields, realtime());
  next_.event(name, sentence, std::move(fields));
}

void ReportedEvents::progress(std::string_view name, const std::string& sentence, EventFields fields) {
  report_.add(name, sentence, fields, realtime());
  next_.progress(name, sentence, std::move(fields));
}

PrintedEvents::PrintedEvents(ReportFormat format, std::string side, bool live)
    : format_(format),
      side_(std::move(side)),
      tty_(live && format == ReportFormat::automatic && ::isatty(2) == 1 && can_erase_lines()) {}

PrintedEvents::~PrintedEvents() { clear_live(); }

void PrintedEvents::clear_live() {
  if (live_) put(2, "\r\x1b[K");
  live_ = false;
}

void PrintedEvents::print_json(std::string_view name, const std::string& sentence, const EventFields& fields) {
  nlohmann::json j = {{"event", name}, {"side", side_}, {"time", realtime()}, {"text", sentence}};
  for (const auto& [key, value] : fields) {
    std::visit([&j, &k = key](const auto& v) { j[k] = v; }, value);
  }
  put(1, j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void PrintedEvents::event(std::string_view name, const std::string& sentence, EventFields fields) {
  if (format_ == ReportFormat::json) {
    print_json(name, sentence, fields);
    return;
  }
  clear_live();
  put(2, printable_text(side_ + ": " + sentence) + "\n");
}

void PrintedEvents::progress(std::string_view name, const std::string& sentence, EventFields fields) {
  const auto now = std::chrono::steady_clock::now();
  if (format_ != ReportFormat::json && !tty_) return;
  if (now - last_progress_ < (tty_ ? kProgressPeriod : kRecordedPeriod)) return;
  last_progress_ = now;
  if (format_ == ReportFormat::json) {
    print_json(name, sentence, fields);
  } else {
    put(2, "\r\x1b[K" + printable_text(side_ + ": " + sentence, terminal_width()));
    live_ = true;
  }
}

std::string human_bytes(uint64_t bytes) {
  char text[32];
  const auto b = static_cast<double>(bytes);
  if (bytes >= (uint64_t{1} << 30)) {
    std::snprintf(text, sizeof text, "%.2f GiB", b / (1 << 30));
  } else if (bytes >= (1 << 20)) {
    std::snprintf(text, sizeof text, "%.1f MiB", b / (1 << 20));
  } else {
    std::snprintf(text, sizeof text, "%.1f KiB", b / 1024);
  }
  return text;
}

std::string per_second(double bytes) { return human_bytes(static_cast<uint64_t>(std::max(bytes, 0.0))) + "/s"; }

}  // namespace migrate

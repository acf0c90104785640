// Logging; a logger is passed to who needs it, there is no global one. Only log.cpp knows that spdlog does the work:
// its headers are too much for every file that logs.
#pragma once

#include <fmt/core.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace spdlog {
class logger;
}

namespace migrate {

/// In the order of their weight; the numbers travel in the messages of a restore.
enum class LogLevel { trace, debug, info, warn, error, critical, off };

class Logger {
 public:
  explicit Logger(std::shared_ptr<spdlog::logger> out) : out_(std::move(out)) {}
  Logger(const Logger&) = delete;
  Logger& operator=(const Logger&) = delete;

  template <class... A>
  void debug(fmt::format_string<A...> format, A&&... args) {
    write(LogLevel::debug, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void info(fmt::format_string<A...> format, A&&... args) {
    write(LogLevel::info, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void warn(fmt::format_string<A...> format, A&&... args) {
    write(LogLevel::warn, format, fmt::make_format_args(args...));
  }
  template <class... A>
  void error(fmt::format_string<A...> format, A&&... args) {
    write(LogLevel::error, format, fmt::make_format_args(args...));
  }
  /// A text as it is, without formatting.
  void log(LogLevel level, std::string_view text);
  void flush();

 private:
  void write(LogLevel level, fmt::string_view format, fmt::format_args args);

  std::shared_ptr<spdlog::logger> out_;
};

using LoggerPtr = std::shared_ptr<Logger>;

/// How the lines of a logger look (spdlog's pattern) and which are kept. Warnings are flushed at once.
struct LogStyle {
  std::string name;
  std::string pattern;
  LogLevel level = LogLevel::info;
};

/// To standard error; `locked` for a logger that more than one thread uses.
LoggerPtr stderr_logger(const LogStyle& style, bool locked = true);
/// To a file, which is emptied; `append` for who goes on with it.
LoggerPtr file_logger(const LogStyle& style, const std::string& path, bool append = false);
/// Every line, of all levels, to `line`, one at a time: for one thread.
LoggerPtr callback_logger(const std::string& name, std::function<void(LogLevel, std::string_view)> line);
/// A logger that drops everything, for tests.
LoggerPtr null_logger();

}  // namespace migrate

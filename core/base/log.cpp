#include "core/base/log.h"

#include <spdlog/details/null_mutex.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <iterator>

namespace migrate {
namespace {

static_assert(static_cast<int>(LogLevel::trace) == SPDLOG_LEVEL_TRACE);
static_assert(static_cast<int>(LogLevel::off) == SPDLOG_LEVEL_OFF);

spdlog::level::level_enum spdlog_level(LogLevel level) { return static_cast<spdlog::level::level_enum>(level); }

LoggerPtr styled(const LogStyle& style, spdlog::sink_ptr sink) {
  auto out = std::make_shared<spdlog::logger>(style.name, std::move(sink));
  out->set_level(spdlog_level(style.level));
  out->set_pattern(style.pattern);
  out->flush_on(spdlog::level::warn);
  return std::make_shared<Logger>(std::move(out));
}

class CallbackSink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  explicit CallbackSink(std::function<void(LogLevel, std::string_view)> line) : line_(std::move(line)) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& msg) override {
    line_(static_cast<LogLevel>(msg.level), std::string_view(msg.payload.data(), msg.payload.size()));
  }
  void flush_() override {}

 private:
  std::function<void(LogLevel, std::string_view)> line_;
};

}  // namespace

void Logger::log(LogLevel level, std::string_view text) {
  out_->log(spdlog_level(level), spdlog::string_view_t(text.data(), text.size()));
}

void Logger::flush() { out_->flush(); }

void Logger::write(LogLevel level, fmt::string_view format, fmt::format_args args) {
  if (!out_->should_log(spdlog_level(level))) return;
  fmt::memory_buffer text;
  fmt::vformat_to(std::back_inserter(text), format, args);
  out_->log(spdlog_level(level), spdlog::string_view_t(text.data(), text.size()));
}

LoggerPtr stderr_logger(const LogStyle& style, bool locked) {
  if (locked) return styled(style, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  return styled(style, std::make_shared<spdlog::sinks::stderr_sink_st>());
}

LoggerPtr file_logger(const LogStyle& style, const std::string& path, bool append) {
  return styled(style, std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, !append));
}

LoggerPtr callback_logger(const std::string& name, std::function<void(LogLevel, std::string_view)> line) {
  auto out = std::make_shared<spdlog::logger>(name, std::make_shared<CallbackSink>(std::move(line)));
  out->set_level(spdlog::level::trace);
  return std::make_shared<Logger>(std::move(out));
}

LoggerPtr null_logger() {
  return std::make_shared<Logger>(
      std::make_shared<spdlog::logger>("null", std::make_shared<spdlog::sinks::null_sink_mt>()));
}

}  // namespace migrate

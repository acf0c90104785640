// Logging is spdlog's; a logger is passed to who needs it, there is no global one.
#pragma once

#include <spdlog/spdlog.h>

#include <memory>

namespace migrate {

using Logger = spdlog::logger;
using LoggerPtr = std::shared_ptr<spdlog::logger>;

/// A logger that drops everything, for tests.
LoggerPtr null_logger();

}  // namespace migrate

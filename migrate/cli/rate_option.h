// Options whose value is a rate or a size.
#pragma once

#include <cstdint>
#include <string>

namespace CLI {
class App;
}

namespace migrate::cli {

/// Registers `name`, whose value is as parse_rate() takes it, into `rate` (bytes a second), which must outlive the
/// parsing.
void add_rate_option(CLI::App& verb, const std::string& name, uint64_t& rate, const std::string& help);

/// The same for a number of bytes.
void add_size_option(CLI::App& verb, const std::string& name, uint64_t& bytes, const std::string& help);

}  // namespace migrate::cli

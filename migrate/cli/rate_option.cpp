#include "migrate/cli/rate_option.h"

#include <CLI/CLI.hpp>
#include <optional>

#include "pageserver/rate_limiter.h"

namespace migrate::cli {

namespace {

/// `kind`: what it is called, `unit`: what to write.
void add_number(CLI::App& verb, const std::string& name, uint64_t& value, const std::string& help,
                const std::string& kind, const std::string& unit) {
  const auto take = [=, &value](const std::string& text) {
    const std::optional<uint64_t> parsed = parse_rate(text);
    if (!parsed)
      throw CLI::ValidationError(
          name, "\"" + text + "\" is no " + kind + "; write " + unit + ", such as 200M, 1.5G or 512Ki (64Ki to 1Ti)");
    value = *parsed;
  };
  verb.add_option_function<std::string>(name, take, help);
}

}  // namespace

void add_rate_option(CLI::App& verb, const std::string& name, uint64_t& rate, const std::string& help) {
  add_number(verb, name, rate, help, "rate", "bytes a second");
  verb.get_option(name)->type_name("RATE");
}

void add_size_option(CLI::App& verb, const std::string& name, uint64_t& bytes, const std::string& help) {
  add_number(verb, name, bytes, help, "size", "bytes");
  verb.get_option(name)->type_name("SIZE");
}

}  // namespace migrate::cli

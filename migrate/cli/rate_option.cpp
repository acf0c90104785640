#include "migrate/cli/rate_option.h"

#include <CLI/CLI.hpp>
#include <optional>

#include "pageserver/rate_limiter.h"

namespace migrate::cli {

void add_rate_option(CLI::App& verb, const std::string& name, uint64_t& rate, const std::string& help) {
  const auto take = [name, &rate](const std::string& text) {
    const std::optional<uint64_t> parsed = parse_rate(text);
    if (!parsed)
      throw CLI::ValidationError(
          name, "\"" + text + "\" is no rate; write bytes a second, such as 200M, 1.5G or 512Ki (64Ki to 1Ti)");
    rate = *parsed;
  };
  verb.add_option_function<std::string>(name, take, help);
}

}  // namespace migrate::cli

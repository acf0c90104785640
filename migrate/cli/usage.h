// How a command line that does not parse is told.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace migrate::cli {

/// "migrate VERB: what is wrong; see `migrate VERB --help`", a line. `app` after it threw that.
std::string usage_sentence(const CLI::App& app, const CLI::ParseError& error);

}  // namespace migrate::cli

#include "migrate/cli/usage.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace migrate::cli {
namespace {

using Parts = std::optional<std::pair<std::string, std::string>>;

/// Around the first `separator`.
Parts split(const std::string& text, const std::string& separator) {
  const size_t at = text.find(separator);
  if (at == std::string::npos) return std::nullopt;
  return std::pair(text.substr(0, at), text.substr(at + separator.size()));
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

/// The parser writes 1 as 1.000000.
std::string plain_numbers(std::string text) {
  static constexpr std::string_view kZeros = ".000000";
  for (size_t at; (at = text.find(kZeros)) != std::string::npos;) text.erase(at, kZeros.size());
  return text;
}

/// What the program does not know comes before what it misses, which was meant by it.
std::string about_extra(const CLI::App& app, bool has_verb) {
  const std::vector<std::string> extra = app.remaining(true);
  const auto option = std::ranges::find_if(extra, [](const std::string& word) { return word.starts_with('-'); });
  if (option != extra.end()) return "there is no option " + *option;
  if (extra.empty()) return "";
  if (!has_verb) return "there is no verb " + quoted(extra.front());
  return quoted(extra.front()) + " is one argument too many";
}

/// An argument as --help names it.
std::string argument(const CLI::App& verb, const std::string& name) {
  const CLI::Option* option = verb.get_option_no_throw(name);
  return option != nullptr && option->get_positional() ? option->get_type_name() : name;
}

/// `what`: the parser's words, which begin with the option's name.
std::string about_value(const std::string& what) {
  if (const Parts missing = split(what, ": 1 required ")) {
    const Parts kind = split(missing->second, " missing");
    return missing->first + " needs a value: " + (kind ? kind->first : missing->second);
  }
  if (const Parts range = split(what, ": Value ")) {
    const Parts value = split(range->second, " not in range ");
    if (value) return range->first + ": " + quoted(value->first) + " is not from " + plain_numbers(value->second);
  }
  if (const Parts words = split(what, " not in {")) {
    const Parts value = split(words->first, ": ");
    if (value)
      return value->first + ": " + quoted(value->second) + " is none of " +
             words->second.substr(0, words->second.find('}'));
  }
  if (const Parts converted = split(what, "Could not convert: ")) {
    const Parts value = split(converted->second, " = ");
    const bool digits = value && !value->second.empty() &&
                        std::ranges::all_of(value->second, [](unsigned char c) { return std::isdigit(c) != 0; });
    if (value) return value->first + ": " + quoted(value->second) + (digits ? " is too large" : " is no number");
  }
  return what.substr(0, what.find(". "));
}

}  // namespace

std::string usage_sentence(const CLI::App& app, const CLI::ParseError& error) {
  const auto verbs = app.get_subcommands();
  const std::string command = verbs.empty() ? "migrate" : "migrate " + verbs.front()->get_name();
  std::string wrong;
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    wrong = about_extra(app, !verbs.empty());
    const Parts missing = split(error.what(), " is required");
    if (wrong.empty() && verbs.empty()) wrong = "it needs a verb";
    if (wrong.empty())
      wrong = "it needs " + (missing ? argument(*verbs.front(), missing->first) : std::string(error.what()));
  } else if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    wrong = about_extra(app, !verbs.empty());
  } else {
    wrong = about_value(error.what());
  }
  return command + ": " + wrong + "; see `" + command + " --help`";
}

}  // namespace migrate::cli

#include "migrate/cli/help.h"

#include <algorithm>
#include <sstream>

namespace migrate::cli {
namespace {

class PlainFormatter final : public CLI::Formatter {
 public:
  /// Arguments as documents name them; options without the --no-NAME that every switch of CRIU's has.
  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    if (is_positional) return option->get_type_name();
    std::istringstream names(option->get_name(false, true));
    std::string shown, only_negative;
    for (std::string name; std::getline(names, name, ',');) {
      const size_t brace = name.find('{');  // "{false}": what the parser makes of it
      if (brace != std::string::npos) {
        only_negative = name.substr(0, brace);
        continue;
      }
      shown += (shown.empty() ? "" : ", ") + name;
    }
    return shown.empty() ? only_negative : shown;
  }

  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0 || option->get_positional()) return "";
    return " " + option->get_type_name();
  }

  std::string make_option_desc(const CLI::Option* option) const override {
    const std::string standard = option->get_default_str();
    return option->get_description() + (standard.empty() ? "" : "; default " + standard);
  }
};

/// The parser appends what it checks to the kind of value; descriptions tell that in words.
void hush_checks(CLI::Option& option) {
  try {
    for (int i = 0;; ++i) option.get_validator(i)->description("");
  } catch (const CLI::OptionNotFound&) {  // that was the last
  }
}

void show(CLI::App& app, const std::shared_ptr<CLI::FormatterBase>& formatter) {
  app.formatter(formatter);
  for (CLI::Option* option : app.get_options()) hush_checks(*option);
  for (CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) show(*verb, formatter);
}

}  // namespace

void show_plainly(CLI::App& app) {
  const auto formatter = std::make_shared<PlainFormatter>();
  formatter->column_width(34);
  show(app, formatter);
}

void hide_all_but(CLI::App& verb, const std::vector<std::string>& names) {
  verb.footer("");
  for (CLI::Option* option : verb.get_options()) {
    const bool wanted = std::ranges::any_of(names, [&](const std::string& name) { return option->check_name(name); });
    if (!wanted && !option->check_name("--help")) option->group("");
  }
}

}  // namespace migrate::cli

// How `--help` shows options: values as people type them, their defaults and nothing of the parser's innards.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <utility>
#include <vector>

namespace migrate::cli {

/// For the app and all its verbs and options, once they are there.
void show_plainly(CLI::App& app);

/// The verb accepts its options, but shows only these; those that are added later are shown.
void hide_all_but(CLI::App& verb, const std::vector<std::string>& names);

/// An option whose value is one of these words. `value` must outlive the parsing; what it holds now is the default.
template <class T>
void add_choice(CLI::App& verb, const std::string& name, T& value, const std::vector<std::pair<std::string, T>>& words,
                const std::string& help) {
  std::vector<std::string> all;
  std::string choice, standard;
  for (const auto& [word, meaning] : words) {
    all.push_back(word);
    choice += (choice.empty() ? "" : "|") + word;
    if (meaning == value) standard = word;
  }
  const auto take = [&value, words](const std::string& text) {
    for (const auto& [word, meaning] : words) {
      if (word == text) value = meaning;
    }
  };
  verb.add_option_function<std::string>(name, take, help)
      ->check(CLI::IsMember(all))
      ->type_name(choice)
      ->default_str(standard);
}

}  // namespace migrate::cli

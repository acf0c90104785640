#include "migrate/cli/idle_options.h"

#include <CLI/CLI.hpp>
#include <initializer_list>

namespace migrate::cli {
namespace {

bool is_given(const CLI::App& verb, const char* name) {
  const CLI::Option* option = verb.get_option_no_throw(name);
  return option != nullptr && option->count() > 0;
}

class Found {
 public:
  explicit Found(const CLI::App& verb) : verb_(verb) {}
  void unless(bool has_effect, std::initializer_list<const char*> options, const std::string& where) {
    if (has_effect) return;
    for (const char* option : options)
      if (is_given(verb_, option)) sentences_.push_back(std::string(option) + " has no effect " + where);
  }
  std::vector<std::string> sentences() { return std::move(sentences_); }

 private:
  const CLI::App& verb_;
  std::vector<std::string> sentences_;
};

}  // namespace

std::vector<std::string> idle_send_options(const CLI::App& verb, const SendOptions& send) {
  const bool rounds = send.mode != SendMode::stop_copy && send.mode != SendMode::postcopy;
  const bool late = send.mode == SendMode::postcopy || send.mode == SendMode::hybrid ||
                    (rounds && send.policy.on_no_convergence == OnNoConvergence::postcopy);
  Found found(verb);
  found.unless(send.mode == SendMode::automatic, {"--allow-postcopy"}, "without --mode auto");
  found.unless(rounds, {"--max-downtime", "--max-rounds", "--max-total-time", "--on-no-convergence"},
               "with a --mode that has no rounds");
  found.unless(late, {"--recover-timeout"},
               "without a mode in which memory follows (postcopy, hybrid, auto --allow-postcopy)");
  return found.sentences();
}

std::vector<std::string> idle_link_options(const CLI::App& verb, bool insecure) {
  Found found(verb);
  found.unless(!insecure, {"--cacert", "--cert", "--key", "--crl", "--tls-name"}, "with --insecure");
  found.unless(insecure, {"--insecure-force"}, "without --insecure");
  return found.sentences();
}

}  // namespace migrate::cli

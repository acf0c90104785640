// The command line: verbs, options, exit codes. Everything else is wired from here.
//
// Exit codes of the low-level verbs: 0 done, 1 failed. Of send, receive and resolve: see migrate/session/README.md.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "migrate/cli/commands.h"
#include "migrate/cli/session_commands.h"
#include "migrate/session/base/session.h"

namespace migrate::cli {
namespace {

using Run = std::function<int()>;

void add_core_verbs(CLI::App& app, CoreOptions& options, Run& run) {
  CLI::App* dump = app.add_subcommand("dump", "write a tree's state into a folder of images");
  add_core_options(*dump, options);
  add_page_options(*dump, options);
  dump->callback([&] { run = [&] { return run_dump(options); }; });

  CLI::App* pre_dump = app.add_subcommand("pre-dump", "store the memory of a running tree ahead of its dump");
  add_core_options(*pre_dump, options);
  add_page_options(*pre_dump, options);
  pre_dump->callback([&] { run = [&] { return run_pre_dump(options); }; });

  CLI::App* page_server = app.add_subcommand("page-server", "store pages of a dump on another machine");
  add_core_options(*page_server, options);
  add_page_options(*page_server, options);
  page_server->add_flag("--daemon", options.daemon, "return once it listens");
  page_server->callback([&] { run = [&] { return run_page_server(options); }; });

  CLI::App* untrack = app.add_subcommand("untrack", "end the tracking that a pre-dump has left behind");
  add_core_options(*untrack, options);
  untrack->callback([&] { run = [&] { return run_untrack(options); }; });

  CLI::App* restore = app.add_subcommand("restore", "start a tree from a folder of images");
  add_core_options(*restore, options);
  restore->callback([&] { run = [&] { return run_restore(options); }; });

  CLI::App* check = app.add_subcommand("check", "find out what this kernel can do");
  add_core_options(*check, options);
  check->add_option("--feature", options.feature, "just this one; `list` names them");
  check->add_flag("--all", options.all, "also tell what is missing but not required");
  check->add_flag("--extra,--experimental", options.extra, "accepted for compatibility");
  check->callback([&] { run = [&] { return run_check(options); }; });
}

int main_checked(int argc, char** argv) {
  CLI::App app("Live migration for Linux processes and containers", "migrate");
  app.set_version_flag("-V,--version", "Version: " MIGRATE_VERSION);
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "help for all verbs");
  CoreOptions core;
  Run run;
  add_core_verbs(app, core, run);
  SessionCommands session(app, run);

  std::vector<std::string> arguments(argv + 1, argv + argc);
  static constexpr std::string_view kLowLevel[] = {"dump", "pre-dump", "restore", "page-server", "untrack", "check"};
  const bool low_level = !arguments.empty() && std::ranges::find(kLowLevel, arguments[0]) != std::end(kLowLevel);
  try {
    if (low_level) arguments = expand_arguments(std::move(arguments));
    std::reverse(arguments.begin(), arguments.end());  // CLI11 parses a vector from its back
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  return run();
}

}  // namespace
}  // namespace migrate::cli

int main(int argc, char** argv) {
  try {
    // Guardians and keepers are this program executed again; their arguments are not for people.
    if (argc >= 2 && std::string_view(argv[1]).starts_with("guardian-")) return migrate::run_guardian(argc, argv);
    if (argc == 4 && std::string_view(argv[1]) == "track-keeper") return migrate::cli::run_track_keeper(argv);
    return migrate::cli::main_checked(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "migrate: " << e.what() << "\n";
    return dynamic_cast<const migrate::Refusal*>(&e) != nullptr ? 2 : 1;
  }
}

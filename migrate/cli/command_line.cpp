#include "migrate/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "migrate/cli/commands.h"
#include "migrate/cli/help.h"
#include "migrate/cli/session_commands.h"
#include "migrate/cli/usage.h"

namespace migrate::cli {
namespace {

using Run = std::function<int()>;

/// Options that are of another thing than where there is a tree.
void describe_server(CLI::App& verb) {
  verb.get_option("--pidfile")->description("write the pid of what serves there");
  verb.get_option("--status-fd")->description("write a NUL byte there when it listens");
}

void add_core_verbs(CLI::App& app, CoreOptions& options, Run& run) {
  CLI::App* dump = app.add_subcommand("dump", "write a tree's state into a folder of images");
  add_core_options(*dump, options);
  add_page_options(*dump, options);
  add_lazy_option(*dump, options,
                  "pages that may come late stay here; they are given to `migrate lazy-pages --page-server`");
  add_client_timeout(*dump, options);
  dump->callback([&] { run = [&] { return run_dump(options); }; });

  CLI::App* pre_dump = app.add_subcommand("pre-dump", "store the memory of a running tree ahead of its dump");
  add_core_options(*pre_dump, options);
  add_page_options(*pre_dump, options);
  pre_dump->callback([&] { run = [&] { return run_pre_dump(options); }; });

  CLI::App* page_server = app.add_subcommand("page-server", "store pages of a dump on another machine");
  add_core_options(*page_server, options);
  add_page_options(*page_server, options);
  page_server->add_flag("--daemon", options.daemon, "return once it listens");
  describe_server(*page_server);
  page_server->callback([&] { run = [&] { return run_page_server(options); }; });

  CLI::App* lazy_pages = app.add_subcommand("lazy-pages", "bring pages to trees that `restore --lazy-pages` starts");
  add_core_options(*lazy_pages, options);
  add_page_options(*lazy_pages, options);
  hide_all_but(*lazy_pages, {"--images-dir", "--work-dir", "--log-file", "--verbosity", "--pidfile", "--status-fd",
                             "--log-pid", "--page-server", "--address", "--port", "--tls", "--tls-cacert",
                             "--tls-cacrl", "--tls-cert", "--tls-key", "--tls-no-cn-verify", "--insecure"});
  add_recover_timeout(*lazy_pages, options);
  lazy_pages->add_flag("--daemon", options.daemon, "return once it listens");
  describe_server(*lazy_pages);
  lazy_pages->get_option("--page-server")->description("pages come from the page server at --address and --port");
  lazy_pages->callback([&] { run = [&] { return run_lazy_pages(options); }; });

  CLI::App* untrack = app.add_subcommand("untrack", "end the tracking that a pre-dump has left behind");
  add_core_options(*untrack, options);
  hide_all_but(*untrack, {"--tree"});
  untrack->callback([&] { run = [&] { return run_untrack(options); }; });

  CLI::App* restore = app.add_subcommand("restore", "start a tree from a folder of images");
  add_core_options(*restore, options);
  add_lazy_option(*restore, options, "pages that may wait come when the tree runs, from `migrate lazy-pages`");
  restore->callback([&] { run = [&] { return run_restore(options); }; });
}

/// What was printed is what a `check` or a help is for: on a full disk that is a failure.
void demand_written() {
  std::cout.flush();
  if (!std::cout) throw Error("standard output cannot be written to: it is closed, or its disk is full");
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App app("Live migration for Linux processes", "migrate");
  app.set_version_flag("-V,--version", "Version: " MIGRATE_VERSION);
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "help for all verbs");
  CoreOptions core;
  Run run;
  add_core_verbs(app, core, run);
  SessionCommands session(app, core, run);
  show_plainly(app);

  std::vector<std::string> arguments(argv + 1, argv + argc);
  static constexpr std::string_view kLowLevel[] = {"dump",       "pre-dump", "restore", "page-server",
                                                   "lazy-pages", "untrack",  "check"};
  const bool prints = !arguments.empty() && (arguments[0] == "check" || arguments[0] == "keys");
  const bool low_level = !arguments.empty() && std::ranges::find(kLowLevel, arguments[0]) != std::end(kLowLevel);
  try {
    if (low_level) arguments = expand_arguments(std::move(arguments));
    std::reverse(arguments.begin(), arguments.end());  // CLI11 parses a vector from its back
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) {  // --help, --version
      const int code = app.exit(e);
      demand_written();
      return code;
    }
    std::cerr << usage_sentence(app, e) << "\n";
    return 2;
  }
  const int code = run();
  if (prints) demand_written();
  return code;
}

}  // namespace migrate::cli

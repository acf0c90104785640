// Options of the low-level verbs (dump, restore, check), with CRIU's names, so that tools written for it run on this.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "core/base/tree_options.h"

namespace CLI {
class App;
}

namespace migrate::cli {

struct CoreOptions : TreeOptions {
  int tree = 0;
  std::string images_dir = ".";
  std::string work_dir;  ///< empty: images_dir
  std::string log_file;  ///< empty: standard error; relative to the work dir
  int verbosity = 2;     ///< 0 nothing, 1 errors, 2 warnings, 3 information, 4 debugging
  bool leave_running = false;
  bool leave_stopped = false;
  bool restore_detached = false;
  bool restore_sibling = false;
  bool display_stats = false;
  bool log_pid = false;
  int timeout_seconds = 10;
  std::string pidfile;  ///< relative to the work dir
  int status_fd = -1;
  std::vector<std::string> action_scripts;
  std::string root;
  bool all = false;  ///< of check: accepted, without effect

  // dump, pre-dump and page-server
  std::string prev_images_dir;  ///< relative to images_dir
  bool track_mem = false;
  bool auto_dedup = false;           ///< refused
  std::string pre_dump_mode;         ///< accepted: there is one way only
  int track_timeout_seconds = 3600;  ///< pre-dump: the tracking ends when no command came for so long
  bool page_server = false;
  uint64_t bandwidth_limit = 0;  ///< bytes/s to the page server; 0: none
  std::string address;           ///< of the page server
  uint16_t port = 0;
  int ps_socket = -1;   ///< a connected socket in place of address and port
  bool daemon = false;  ///< page-server: return once it listens
  /// restore: pages that may wait come from a lazy-pages daemon; dump: they stay here until such a one asks for them
  bool lazy_pages = false;
  int client_timeout_seconds = 0;   ///< dump: so long it waits for the first request; 0: for ever
  int recover_timeout_seconds = 0;  ///< lazy-pages: so long it tries to reach a lost page server; 0: for ever
  bool tls = false, tls_no_cn_verify = false, insecure = false;
  std::string tls_cacert, tls_cacrl, tls_cert, tls_key;

  std::string effective_work_dir() const { return work_dir.empty() ? images_dir : work_dir; }
};

/// images_dir. Refusal if there is no such folder.
Fd open_images_folder(const CoreOptions& options);

/// Registers them on a verb. `options` must outlive the parsing.
void add_core_options(CLI::App& verb, CoreOptions& options);

/// Those of dump, pre-dump and page-server about where pages go.
void add_page_options(CLI::App& verb, CoreOptions& options);
/// Of dump, restore and lazy-pages: pages that come when the tree runs.
void add_lazy_option(CLI::App& verb, CoreOptions& options, const char* help);
void add_client_timeout(CLI::App& verb, CoreOptions& options);
void add_recover_timeout(CLI::App& verb, CoreOptions& options);

/// Rewrites what CLI11 cannot express: `-v`, `-vv`, `-v4`; and puts the options of CRIU's configuration files
/// (/etc/criu/default.conf, $HOME/.criu/default.conf, $CRIU_CONFIG_FILE, --config FILE) before those of the command
/// line, unless --no-default-config or --config is given. `arguments` without the program's name; the verb stays first.
std::vector<std::string> expand_arguments(std::vector<std::string> arguments);

/// The words of a configuration file ("name", "name value", "name=value"; # comments) as options. Exposed for tests.
std::vector<std::string> parse_config(const std::string& text);

/// The logger these options ask for; `append` for who goes on with the file of another process.
LoggerPtr make_logger(const CoreOptions& options, bool append = false);

}  // namespace migrate::cli

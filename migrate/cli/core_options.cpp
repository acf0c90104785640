#include "migrate/cli/core_options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "core/base/types.h"
#include "migrate/cli/rate_option.h"

namespace migrate::cli {
namespace {

void add_switch(CLI::App& verb, const std::string& names, const std::string& negated, bool& value, const char* help) {
  // Every boolean also exists as --no-NAME.
  verb.add_flag(names + ",!--no-" + negated, value, help);
}

/// One that is not there, or not for this user, says nothing.
void append_config(std::vector<std::string>& out, const std::string& path) {
  if (::access(path.c_str(), R_OK) != 0) return;
  for (std::string& word : parse_config(read_file_at(AT_FDCWD, path))) out.push_back(std::move(word));
}

}  // namespace

Fd open_images_folder(const CoreOptions& o) {
  try {
    return open_path(o.images_dir, O_RDONLY | O_DIRECTORY);
  } catch (const Error& e) {
    if (e.code() != ENOENT && e.code() != ENOTDIR) throw;
    throw Refusal("there is no folder " + o.images_dir, "make it, or name another one with --images-dir");
  }
}

void add_core_options(CLI::App& verb, CoreOptions& o) {
  verb.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  verb.footer("--config FILE takes options from there; --no-default-config: none from /etc/criu and ~/.criu");
  verb.add_option("-t,--tree", o.tree, "root of the process tree")->type_name("PID")->check(CLI::Range(1, kMaxPid));
  verb.add_option("-D,--images-dir", o.images_dir, "folder of the images")->type_name("DIR")->capture_default_str();
  verb.add_option("-W,--work-dir", o.work_dir, "folder of logs, pidfiles and statistics; default: the images'")
      ->type_name("DIR");
  verb.add_option("-o,--log-file", o.log_file, "log there instead of standard error")->type_name("FILE");
  verb.add_option("--verbosity", o.verbosity, "0 nothing to 4 debugging; also -v, -vv, -v4")
      ->check(CLI::Range(0, 4))
      ->type_name("N")
      ->capture_default_str();
  add_switch(verb, "-R,--leave-running", "leave-running", o.leave_running, "leave the tree running after the dump");
  add_switch(verb, "-s,--leave-stopped", "leave-stopped", o.leave_stopped, "leave the tree stopped");
  add_switch(verb, "-d,--restore-detached", "restore-detached", o.restore_detached,
             "do not wait for the restored tree");
  add_switch(verb, "-S,--restore-sibling", "restore-sibling", o.restore_sibling, "restore the root as our sibling");
  add_switch(verb, "-j,--shell-job", "shell-job", o.shell_job, "the session or terminal may be outside of the tree");
  add_switch(verb, "--tcp-close", "tcp-close", o.tcp_close, "drop established TCP connections");
  add_switch(verb, "--ext-unix-sk", "ext-unix-sk", o.ext_unix_sk, "allow Unix sockets connected to the outside");
  add_switch(verb, "--link-remap", "link-remap", o.link_remap, "allow links to unlinked files to be made");
  add_switch(verb, "-l,--file-locks", "file-locks", o.file_locks, "handle file locks");
  add_switch(verb, "--display-stats", "display-stats", o.display_stats, "print statistics");
  add_switch(verb, "--log-pid", "log-pid", o.log_pid, "log to FILE.PID");
  verb.add_option("--ghost-limit", o.ghost_limit, "largest unlinked file to carry, in bytes or as 64K, 1M, 1G")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("SIZE")
      ->default_str("1M");
  verb.add_option("--timeout", o.timeout_seconds, "time for the tree to stop, 1 to 3600")
      ->check(CLI::Range(1, 3600))
      ->type_name("SECONDS")
      ->capture_default_str();
  verb.add_option("--pidfile", o.pidfile, "write the root's pid there")->type_name("FILE");
  verb.add_option("--status-fd", o.status_fd, "write a NUL byte there when the tree is ready")->type_name("FD");
  verb.add_option("--action-script", o.action_scripts, "run this at each stage; may be given several times")
      ->type_name("FILE")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb.add_option("-r,--root", o.root, "root folder of the restored tree")->type_name("DIR");
}

void add_page_options(CLI::App& verb, CoreOptions& o) {
  verb.add_option("--prev-images-dir", o.prev_images_dir, "folder of the dump before, relative to the images folder")
      ->type_name("DIR");
  add_switch(verb, "--track-mem", "track-mem", o.track_mem, "leave out what was not written since the pre-dump before");
  add_switch(verb, "--auto-dedup", "auto-dedup", o.auto_dedup, "not supported");
  verb.add_option("--pre-dump-mode", o.pre_dump_mode, "accepted for compatibility")
      ->check(CLI::IsMember({"splice", "read"}))
      ->type_name("splice|read");
  verb.add_option("--track-timeout", o.track_timeout_seconds,
                  "time without a command until tracking ends, 1 to 2592000")
      ->check(CLI::Range(1, 30 * 86400))
      ->type_name("SECONDS")
      ->capture_default_str();
  add_switch(verb, "--page-server", "page-server", o.page_server,
             "pages go to the page server at --address and --port");
  verb.add_option("--address", o.address, "address of the page server")->type_name("ADDRESS");
  verb.add_option("--port", o.port, "its port")->type_name("N")->check(CLI::Range(0, 65535));
  add_rate_option(verb, "--bandwidth-limit", o.bandwidth_limit,
                  "bytes a second to the page server, such as 200M or 1.5G");
  verb.add_option("--ps-socket", o.ps_socket, "a connected socket, in place of address and port")->type_name("FD");
  add_switch(verb, "--tls", "tls", o.tls, "TLS with certificates on both sides");
  verb.add_option("--tls-cacert", o.tls_cacert, "certificate of the CA; default /etc/migrate/ca.crt")
      ->type_name("FILE");
  verb.add_option("--tls-cacrl", o.tls_cacrl, "revoked certificates")->type_name("FILE");
  verb.add_option("--tls-cert", o.tls_cert, "this host's certificate; default /etc/migrate/host.crt")
      ->type_name("FILE");
  verb.add_option("--tls-key", o.tls_key, "its key; default /etc/migrate/host.key")->type_name("FILE");
  add_switch(verb, "--tls-no-cn-verify", "tls-no-cn-verify", o.tls_no_cn_verify,
             "the server's certificate need not carry its address");
  add_switch(verb, "--insecure", "insecure", o.insecure, "without TLS, also to and from other machines");
}

void add_lazy_option(CLI::App& verb, CoreOptions& o, const char* help) {
  add_switch(verb, "--lazy-pages", "lazy-pages", o.lazy_pages, help);
}

void add_client_timeout(CLI::App& verb, CoreOptions& o) {
  verb.add_option("--client-timeout", o.client_timeout_seconds,
                  "with --lazy-pages: time for the first request, then the tree runs on; 1 to 86400, default: no end")
      ->check(CLI::Range(1, 86400))
      ->type_name("SECONDS");
}

void add_recover_timeout(CLI::App& verb, CoreOptions& o) {
  verb.add_option("--recover-timeout", o.recover_timeout_seconds,
                  "time to reach a page server that is lost, then missing pages raise SIGBUS; 1 to 2592000, default: "
                  "no end; before a restore has come the daemon just ends, by default after 10")
      ->check(CLI::Range(1, 30 * 86400))
      ->type_name("SECONDS");
}

std::vector<std::string> parse_config(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t comment = line.find('#');
    if (comment != std::string::npos) line.resize(comment);
    const size_t start = line.find_first_not_of(" \t");
    if (start == std::string::npos) continue;
    line = line.substr(start, line.find_last_not_of(" \t\r") - start + 1);
    const size_t end = line.find_first_of(" \t=");
    words.push_back("--" + line.substr(0, end));
    if (end == std::string::npos) continue;
    const size_t value = line.find_first_not_of(" \t=", end);
    if (value != std::string::npos) words.back() += "=" + line.substr(value);
  }
  return words;
}

std::vector<std::string> expand_arguments(std::vector<std::string> arguments) {
  if (arguments.empty()) return arguments;
  std::vector<std::string> out{arguments.front()};
  std::vector<std::string> rest;
  std::string config;
  bool defaults = true;
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string& a = arguments[i];
    if (a == "--no-default-config") {
      defaults = false;
    } else if (a == "--config" && i + 1 < arguments.size()) {
      config = arguments[++i];
    } else if (a.starts_with("--config=")) {
      config = a.substr(9);
    } else if (a.size() > 1 && a.find_first_not_of('v', 1) == std::string::npos && a[0] == '-' && a[1] == 'v') {
      rest.push_back("--verbosity=" + std::to_string(std::min<size_t>(a.size() - 1, 4)));
    } else if (a.size() == 3 && a.starts_with("-v")) {
      rest.push_back("--verbosity=" + a.substr(2));
    } else {
      rest.push_back(a);
    }
  }
  if (!config.empty()) {
    if (::access(config.c_str(), R_OK) != 0) throw Error("open", config, errno);
    append_config(out, config);
  } else if (defaults) {
    append_config(out, "/etc/criu/default.conf");
    if (const char* home = std::getenv("HOME")) append_config(out, std::string(home) + "/.criu/default.conf");
  }
  if (const char* file = std::getenv("CRIU_CONFIG_FILE")) append_config(out, file);
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

LoggerPtr make_logger(const CoreOptions& o, bool append) {
  static constexpr LogLevel kLevels[] = {LogLevel::off, LogLevel::error, LogLevel::warn, LogLevel::info,
                                         LogLevel::debug};
  const LogStyle style{"migrate", "(%E.%e) %l: %v", kLevels[std::clamp(o.verbosity, 0, 4)]};
  if (o.log_file.empty() || o.log_file == "-") return stderr_logger(style);
  std::filesystem::path path(o.log_file);
  if (path.is_relative()) path = std::filesystem::path(o.effective_work_dir()) / path;
  if (o.log_pid) path += "." + std::to_string(::getpid());
  return file_logger(style, path.string(), append);
}

}  // namespace migrate::cli

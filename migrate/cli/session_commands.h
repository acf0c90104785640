// The verbs that move programs between hosts: send, receive, resolve, keys; and the hidden ones behind them.
#pragma once

#include <functional>

#include "migrate/cli/commands.h"
#include "migrate/session/base/options.h"
#include "pageserver/keys.h"

namespace CLI {
class App;
}

namespace migrate::cli {

/// Registers the verbs on `app`; parsing one sets `run`. Must outlive the call of `run`.
class SessionCommands {
 public:
  /// `core`: for `check`, which takes the options of CRIU's as well. Must outlive this.
  SessionCommands(CLI::App& app, CoreOptions& core, std::function<int()>& run);

 private:
  struct Link {
    std::string cacert, cert, key, crl, tls_name;
    bool insecure = false, force = false, json = false, verbose = false;
  };
  void add_link(CLI::App& verb);
  void add_output(CLI::App& verb, std::string& state_dir);
  /// Warns of options that have no effect.
  LinkOptions link_options(const CLI::App& verb, Logger& log) const;
  void add_send(CLI::App& app, std::function<int()>& run);
  void add_policy(CLI::App& verb);
  void add_page_streams(CLI::App& verb);
  void add_receive(CLI::App& app, std::function<int()>& run);
  void add_resolve(CLI::App& app, std::function<int()>& run);
  void add_check(CLI::App& app, CoreOptions& core, std::function<int()>& run);
  void add_keys(CLI::App& app, std::function<int()>& run);

  Link link_;
  std::vector<std::string> accept_;
  std::vector<std::string> denied_capabilities_;
  std::string force_run_, force_kill_;
  double key_days_ = 825, max_downtime_ms_ = 50;
  SendOptions send_;
  ReceiveOptions receive_;
  ResolveOptions resolve_;
  KeyOptions keys_;
  CheckOptions check_;
};

}  // namespace migrate::cli

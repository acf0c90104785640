#include "migrate/cli/session_commands.h"

#include <sys/capability.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "core/base/error.h"
#include "core/image/leave_out.h"
#include "migrate/cli/help.h"
#include "migrate/cli/idle_options.h"
#include "migrate/cli/key_files.h"
#include "migrate/cli/rate_option.h"
#include "migrate/session/base/session.h"
#include "migrate/session/telling/fault.h"
#include "pageserver/keys.h"

namespace migrate::cli {
namespace {

/// The images of a tree have 1 GiB in all.
constexpr uint64_t kMostGhost = 256 << 20;

LoggerPtr session_logger(bool verbose) {
  return stderr_logger({"migrate", "%H:%M:%S.%e %l: %v", verbose ? LogLevel::debug : LogLevel::warn});
}

void warn(Logger& log, const std::vector<std::string>& sentences) {
  for (const std::string& sentence : sentences) log.warn("{}", sentence);
}

uint64_t capability_bits(const std::vector<std::string>& names) {
  uint64_t bits = 0;
  for (std::string name : names) {
    if (name == "all") return ~uint64_t{0};
    if (name.rfind("cap_", 0) != 0 && name.rfind("CAP_", 0) != 0) name.insert(0, "cap_");
    cap_value_t value = 0;
    if (::cap_from_name(name.c_str(), &value) != 0)
      throw Refusal("there is no capability " + name, "see capabilities(7)");
    bits |= uint64_t{1} << value;
  }
  return bits;
}

/// A time of 1 s to 30 days.
void add_seconds(CLI::App& verb, const std::string& name, std::chrono::seconds& value, const std::string& text) {
  verb.add_option_function<int>(
          name, [&value](int seconds) { value = std::chrono::seconds(seconds); }, text)
      ->check(CLI::Range(1, 30 * 86400))
      ->type_name("SECONDS");
}

}  // namespace

SessionCommands::SessionCommands(CLI::App& app, CoreOptions& core, std::function<int()>& run) {
  add_check(app, core, run);
  add_send(app, run);
  add_receive(app, run);
  add_resolve(app, run);
  add_keys(app, run);
}

void SessionCommands::add_link(CLI::App& verb) {
  verb.add_option("--cacert", link_.cacert, "certificate of the CA; default /etc/migrate/ca.crt")->type_name("FILE");
  verb.add_option("--cert", link_.cert, "this host's certificate; default /etc/migrate/host.crt")->type_name("FILE");
  verb.add_option("--key", link_.key, "this host's key; default /etc/migrate/host.key")->type_name("FILE");
  verb.add_option("--crl", link_.crl, "revoked certificates")->type_name("FILE");
  verb.add_flag("--insecure", link_.insecure, "no TLS; on both sides, between processes of one user on one machine");
  verb.add_flag("--insecure-force", link_.force, "with --insecure: also with other users and machines");
  verb.add_flag("--json", link_.json, "one event an object a line on standard output");
}

void SessionCommands::add_output(CLI::App& verb, std::string& state_dir) {
  verb.add_flag("-v,--verbose", link_.verbose, "tell more on standard error");
  verb.add_option("--state-dir", state_dir, "folder of the journals")->type_name("DIR")->capture_default_str();
}

LinkOptions SessionCommands::link_options(const CLI::App& verb, Logger& log) const {
  warn(log, idle_link_options(verb, link_.insecure));
  LinkOptions link;
  link.tls_name = link_.tls_name;
  link.insecure = link_.insecure;
  link.insecure_forced = link_.force;
  if (link_.insecure) return link;
  TlsConfig tls;
  tls.cacert = key_file(link_.cacert, kCaFile);
  tls.cert = key_file(link_.cert, kHostCertificateFile);
  tls.key = key_file(link_.key, kHostKeyFile);
  if (!link_.crl.empty()) tls.crl = link_.crl;
  // No more than a word: it may be our clock that is wrong, and peers say what they think of it.
  constexpr int64_t kSoon = int64_t{7} * 86400;
  if (!tls.cert.empty() && ::access(tls.cert.c_str(), R_OK) == 0)
    if (const std::string wrong = dates_of(tls.cert, kSoon); !wrong.empty())
      log.warn("{}; make another with `migrate keys --force`", wrong);
  link.tls = tls;
  return link;
}

void SessionCommands::add_send(CLI::App& app, std::function<int()>& run) {
  CLI::App* verb = app.add_subcommand("send", "move a running tree to another host");
  verb->add_option("address", send_.address, "where the receiver listens")->required()->type_name("HOST:PORT");
  verb->add_option("target", send_.target, "what moves: N and all its descendants")->required()->type_name("pid:N");
  add_link(*verb);
  add_output(*verb, send_.state_dir);
  verb->add_option("--tls-name", link_.tls_name, "name that the receiver's certificate must carry; default HOST")
      ->type_name("NAME");
  add_choice<SendMode>(
      *verb, "--mode", send_.mode,
      {{"precopy", SendMode::precopy},
       {"stop-copy", SendMode::stop_copy},
       {"postcopy", SendMode::postcopy},
       {"hybrid", SendMode::hybrid},
       {"auto", SendMode::automatic}},
      "precopy: send memory while the program runs; stop-copy: stop it first; postcopy: when it runs at "
      "the destination; hybrid: what is written meanwhile then; auto: precopy, and hybrid where that does "
      "not converge");
  verb->add_flag("--allow-postcopy", send_.allow_postcopy,
                 "to --mode auto: until it is whole the program may need both hosts");
  add_seconds(*verb, "--recover-timeout", send_.recover_timeout,
              "time to reach a destination that is lost while memory follows, then a process in the background goes on "
              "trying; 1 to 2592000, default: no end");
  add_seconds(*verb, "--abort-downtime", send_.abort_downtime,
              "give up, and let the program run on here, when it has stood still for so long and is not handed over; 1 "
              "to 2592000, default: ten times what was estimated, and 30 at least; with --mode stop-copy no limit");
  add_policy(*verb);
  add_page_streams(*verb);
  verb->add_option("--report", send_.report_file, "write a picture of the migration's time line")
      ->type_name("FILE.html");
  send_.file_locks = true;  // which are handed over
  verb->add_flag("--tcp-close", send_.tcp_close, "drop established TCP connections");
  verb->add_flag("--ext-unix-sk", send_.ext_unix_sk,
                 "connect Unix datagram sockets that lead out of the tree again, by name");
  verb->add_option("--ghost-limit", send_.ghost_limit,
                   "largest deleted file to carry along, read while the program stands still; in bytes or as 64K, 1M")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{0}, kMostGhost))
      ->type_name("SIZE")
      ->default_str("1M");
  verb->add_flag("-j,--shell-job", send_.shell_job, "the tree was started from a shell, which will see it go");
  verb->add_flag("--parent-may-notice", send_.parent_may_notice,
                 "move although parent or supervisor will see the tree exit");
  verb->add_flag("--files-shared", send_.files_shared,
                 "files the tree writes are the same on both hosts: do not probe");
  verb->callback([this, verb, &run] {
    run = [this, verb] {
      const LoggerPtr log = session_logger(link_.verbose);
      send_.link = link_options(*verb, *log);
      send_.policy.max_downtime = max_downtime_ms_ / 1e3;
      if (send_.mode == SendMode::automatic && send_.allow_postcopy) {
        OnNoConvergence& then = send_.policy.on_no_convergence;
        if (verb->count("--on-no-convergence") > 0 && then != OnNoConvergence::postcopy)
          throw Refusal("--allow-postcopy and --on-no-convergence say different things", "give one of them");
        then = OnNoConvergence::postcopy;
      }
      warn(*log, idle_send_options(*verb, send_));
      send_.report = link_.json ? ReportFormat::json : ReportFormat::automatic;
      return run_send(send_, *log);
    };
  });
}

void SessionCommands::add_policy(CLI::App& verb) {
  verb.add_option("--max-downtime", max_downtime_ms_, "milliseconds that the program may stand still, 0 to 3600000")
      ->check(CLI::Range(0.0, 3600e3))
      ->type_name("MS")
      ->capture_default_str();
  verb.add_option("--max-rounds", send_.policy.max_rounds, "rounds of pages while the program runs, 1 to 1000")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  verb.add_option("--max-total-time", send_.policy.max_total_time,
                  "seconds that the rounds may take in all, 0 to 1000000000; 0: any number")
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("SECONDS")
      ->capture_default_str();
  add_choice<OnNoConvergence>(verb, "--on-no-convergence", send_.policy.on_no_convergence,
                              {{"stop", OnNoConvergence::stop},
                               {"throttle", OnNoConvergence::throttle},
                               {"cancel", OnNoConvergence::cancel},
                               {"postcopy", OnNoConvergence::postcopy}},
                              "when rounds do not bring the downtime below the limit: stop the program all the same, "
                              "throttle it first, cancel the move, or send the rest when it runs at the destination");
}

void SessionCommands::add_page_streams(CLI::App& verb) {
  verb.add_option("--streams", send_.streams, "parallel connections for pages, 1 to 64")
      ->check(CLI::Range(1, 64))
      ->type_name("N")
      ->capture_default_str();
  verb.add_option_function<std::string>(
          "--compress",
          [this](const std::string& text) {
            const std::optional<Compression> wanted = parse_compression(text);
            if (!wanted)
              throw CLI::ValidationError(
                  "--compress", "\"" + text + "\" is no compression; write auto, off, lz4, zstd or zstd:1 to zstd:" +
                                    std::to_string(kMaxZstdLevel));
            send_.compress = *wanted;
          },
          "how pages are packed; auto: whatever measures best; LEVEL: 1 (default) to 19")
      ->type_name("off|auto|lz4|zstd[:LEVEL]")
      ->default_str("off");
  add_rate_option(
      verb, "--bandwidth-limit", send_.bandwidth_limit,
      "bytes a second that pages may take, such as 200M or 1.5G; for which of them it holds, migrate(8) says");
}

void SessionCommands::add_receive(CLI::App& app, std::function<int()>& run) {
  CLI::App* verb = app.add_subcommand("receive", "take trees that are sent here");
  add_link(*verb);
  add_output(*verb, receive_.state_dir);
  verb->add_option("--listen", receive_.listen, "where senders connect to")
      ->type_name("ADDR:PORT")
      ->capture_default_str();
  verb->add_flag("--once", receive_.once, "exit after one migration");
  add_size_option(*verb, "--max-memory", receive_.max_memory,
                  "memory that a received tree may have, in bytes or such as 8G; default: what is free when it comes");
  verb->add_option("--max-tasks", receive_.max_tasks, "tasks and threads that a received tree may have, 1 to 4000000")
      ->check(CLI::Range(1, 4'000'000))
      ->type_name("N")
      ->capture_default_str();
  verb->add_option("--max-sessions", receive_.max_sessions, "migrations at a time, 1 to 1000")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  verb->add_option("--accept", accept_, "take trees only from a peer whose certificate carries this name; repeatable")
      ->type_name("NAME");
  verb->add_option("--allow-uid", receive_.allow_uids, "take only tasks of this user id; repeatable")->type_name("UID");
  verb->add_option_function<std::vector<uint32_t>>(
          "--allow-gid", [this](const std::vector<uint32_t>& gids) { receive_.allow_gids = gids; },
          "take only tasks of these groups; default with --allow-uid: those that these users have here")
      ->type_name("GID,...")
      ->delimiter(',');
  verb->add_option("--deny-caps", denied_capabilities_, "refuse tasks that have one of these capabilities (all: any)")
      ->type_name("CAP,...")
      ->delimiter(',');
  verb->add_option("--root", receive_.root, "folder that all paths of received trees are under")->type_name("DIR");
  verb->add_option("--cgroup", receive_.cgroup,
                   "cgroup that received trees are put in, wherever it exists; default: the receiver's")
      ->type_name("PATH");
  verb->add_flag("!--no-compress", receive_.packed_pages, "take no pages that are compressed");
  verb->add_option("--status-fd", receive_.status_fd, "NUL bytes there: listening, restore may begin, ready")
      ->type_name("FD");
  verb->callback([this, verb, &run] {
    run = [this, verb] {
      const LoggerPtr log = session_logger(link_.verbose);
      receive_.link = link_options(*verb, *log);
      if (receive_.link.tls) receive_.link.tls->accepted_peers = accept_;
      receive_.deny_capabilities = capability_bits(denied_capabilities_);
      receive_.report = link_.json ? ReportFormat::json : ReportFormat::automatic;
      return run_receive(receive_, *log);
    };
  });
}

void SessionCommands::add_resolve(CLI::App& app, std::function<int()>& run) {
  CLI::App* verb = app.add_subcommand("resolve", "show and settle sessions that are in doubt");
  verb->add_option("session", resolve_.session, "just this one")->type_name("SESSION");
  add_link(*verb);
  add_output(*verb, resolve_.state_dir);
  verb->add_option("--peer", resolve_.address, "the other side; default: as the journal says")->type_name("HOST:PORT");
  verb->add_option("--tls-name", link_.tls_name, "name that the peer's certificate must carry")->type_name("NAME");
  verb->add_option("--force-run", force_run_, "the copy here is to run, whatever the other side does")
      ->type_name("SESSION");
  verb->add_option("--force-kill", force_kill_, "the copy here is to be killed")->type_name("SESSION");
  verb->callback([this, verb, &run] {
    run = [this, verb] {
      const LoggerPtr log = session_logger(link_.verbose);
      if (!force_run_.empty() && !force_kill_.empty())
        throw Refusal("--force-run and --force-kill exclude each other", "give one of them");
      if (!force_run_.empty() || !force_kill_.empty()) {
        resolve_.force = force_kill_.empty() ? ResolveOptions::Force::run : ResolveOptions::Force::kill;
        resolve_.typed_session = force_kill_.empty() ? force_run_ : force_kill_;
        if (resolve_.session.empty()) resolve_.session = resolve_.typed_session;
      }
      resolve_.link = link_options(*verb, *log);
      resolve_.report = link_.json ? ReportFormat::json : ReportFormat::automatic;
      return run_resolve(resolve_, *log);
    };
  });
  CLI::App* points = app.add_subcommand("fault-points", "name the fault points of the tests")->group("");
  points->callback([&run] {
    run = [] {
      for (const std::string_view name : fault_points()) std::cout << name << "\n";
      return 0;
    };
  });
  CLI::App* subjects =
      app.add_subcommand("left-out-names", "name what MIGRATE_TEST_LEAVE_OUT can leave out")->group("");
  subjects->callback([&run] {
    run = [] {
      for (const std::string& name : left_out_names()) std::cout << name << "\n";
      return 0;
    };
  });
}

void SessionCommands::add_check(CLI::App& app, CoreOptions& core, std::function<int()>& run) {
  CLI::App* verb = app.add_subcommand("check", "find out what this host can do, or whether a receiver's fits to it");
  add_core_options(*verb, core);
  hide_all_but(*verb, {});  // `criu check` takes them
  verb->add_option("peer", check_.peer, "where a receiver listens; nothing is begun there")->type_name("HOST:PORT");
  verb->add_option("--feature", check_.feature, "just this one; `list` names them")->type_name("NAME");
  verb->add_flag("--all,--extra,--experimental", core.all, "accepted for compatibility: all is told anyway");
  add_link(*verb);
  verb->add_option("--tls-name", link_.tls_name, "name that the receiver's certificate must carry; default HOST")
      ->type_name("NAME");
  verb->callback([this, verb, &run] {
    run = [this, verb] {
      if (!check_.peer.empty() && !check_.feature.empty())
        throw Refusal("--feature is about this host, not about " + check_.peer, "leave out one of them");
      check_.link = link_options(*verb, *session_logger(false));
      check_.keys_named = !(link_.cacert + link_.cert + link_.key + link_.crl).empty();
      check_.json = link_.json;
      return run_check(check_);
    };
  });
}

void SessionCommands::add_keys(CLI::App& app, std::function<int()>& run) {
  CLI::App* verb = app.add_subcommand("keys", "make a small CA and host certificates");
  keys_.dir = kDefaultKeyDir;
  verb->add_option("--dir", keys_.dir, "folder for ca.crt, ca.key, NAME.crt, NAME.key")
      ->type_name("DIR")
      ->capture_default_str();
  verb->add_option("names", keys_.names, "host names or addresses, a certificate each")->required()->type_name("NAME");
  verb->add_flag("--force", keys_.force, "replace host certificates that exist");
  verb->add_option("--days", key_days_, "how long host certificates are valid")
      ->type_name("DAYS")
      ->capture_default_str();
  verb->callback([this, &run] {
    run = [this] {
      keys_.host_not_after = static_cast<int64_t>(key_days_ * 86400);
      if (keys_.host_not_after <= keys_.host_not_before) keys_.host_not_before = keys_.host_not_after - 86400;
      for (const std::string& file : make_keys(keys_)) std::cout << file << "\n";
      std::cout.flush();
      std::cerr << "migrate: each host needs " << keys_.dir
                << "/ca.crt, its NAME.crt and its NAME.key, as ca.crt, host.crt "
                << "and host.key in " << kDefaultKeyDir << "; keep " << keys_.dir << "/ca.key away from them\n";
      if (key_days_ <= 0) std::cerr << "migrate: these certificates are valid no longer (--days)\n";
      return 0;
    };
  });
}

}  // namespace migrate::cli

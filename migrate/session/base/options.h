// What the command line hands to the session layer. Plain values; the entry points are in session.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fd.h"
#include "core/base/tree_options.h"
#include "migrate/policy/precopy_policy.h"
#include "pageserver/page_codec.h"
#include "pageserver/tls.h"

namespace migrate {

inline constexpr const char* kDefaultStateDir = "/var/lib/migrate";

/// How long each step may take before the migration is given up.
struct Timeouts {
  std::chrono::milliseconds connect{10'000};
  std::chrono::milliseconds answer{30'000};   ///< for an ordinary answer of the peer
  std::chrono::milliseconds freeze{10'000};   ///< until all tasks are stopped and described
  std::chrono::milliseconds restore{60'000};  ///< for each of the destination's prepare and finish
  std::chrono::milliseconds silence{30'000};  ///< an agent that says nothing to its guardian before commit
  std::chrono::milliseconds settle{5'000};    ///< for telling the peer about an abort, before leaving it to resolve
};

/// The same, changed by MIGRATE_TEST_TIMEOUTS ("answer=1000,silence=500", milliseconds) so that tests need not wait.
/// Refusal if that cannot be read.
Timeouts with_test_timeouts(Timeouts timeouts);

/// How the connection is protected.
struct LinkOptions {
  std::optional<TlsConfig> tls;
  std::string tls_name;          ///< name that the server's certificate must carry; empty: the host that was typed
  bool insecure = false;         ///< plain TCP, on loopback only
  bool insecure_forced = false;  ///< ... also elsewhere
};

/// What a downtime may be, where nobody says (SendOptions::abort_downtime).
inline constexpr int kPatience = 10;
inline constexpr std::chrono::seconds kLeastPatience{30};

enum class ReportFormat { automatic, lines, json };

enum class SendMode { precopy, stop_copy, postcopy, hybrid, automatic };

struct SendOptions : TreeOptions {
  std::string address;  ///< HOST:PORT of the receiver
  std::string target;   ///< "pid:N"
  LinkOptions link;
  SendMode mode = SendMode::precopy;
  bool allow_postcopy = false;  ///< to SendMode::automatic, where rounds do not converge
  PolicyOptions policy;         ///< when rounds end
  int streams = 2;
  Compression compress;                     ///< of pages, if the receiver agrees
  uint64_t bandwidth_limit = 0;             ///< bytes/s of pages while the tree runs (in stop-copy: always); 0: none
  std::chrono::seconds recover_timeout{0};  ///< for connecting a cut feed again; 0: any time
  /// So long the program may stand still until it is committed; 0: kPatience times what was expected, if that is known,
  /// and kLeastPatience at least.
  std::chrono::seconds abort_downtime{0};
  bool parent_may_notice = false;  ///< go on although the tree's parent or supervisor will see it exit
  bool files_shared = false;       ///< the operator knows that files the tree writes are the same on both hosts
  ReportFormat report = ReportFormat::automatic;
  std::string report_file;  ///< HTML page with a picture of the time line; empty: none
  std::string state_dir = kDefaultStateDir;
  Timeouts timeouts;
};

struct ReceiveOptions {
  std::string listen = "0.0.0.0:7400";  ///< port 0: a free one, told by the `listening` event
  unsigned max_sessions = 8;            ///< migrations at a time
  uint64_t max_tasks = 10'000;          ///< tasks and threads of a session
  uint64_t max_memory = 0;              ///< bytes that a session's copy may have; 0: what is available when it begins
  bool once = false;                    ///< serve one migration, then exit with its code
  LinkOptions link;                     ///< accepted names are in link.tls->accepted_peers
  std::string root;                     ///< folder that all paths of received trees are under
  std::optional<std::string> cgroup;    ///< that received trees are put in (find_named_cgroup); nullopt: ours
  std::vector<uint32_t> allow_uids;     ///< empty: any
  std::optional<std::vector<uint32_t>> allow_gids;  ///< nullopt: any; with allow_uids: what those users have here
  bool packed_pages = true;                         ///< take pages that are compressed
  uint64_t deny_capabilities = 0;                   ///< bits of capabilities(7) that no received task may have
  int status_fd = -1;  ///< one NUL byte when listening, one when a restore may begin, one when ready
  ReportFormat report = ReportFormat::automatic;
  std::string state_dir = kDefaultStateDir;
  Timeouts timeouts;
};

struct ResolveOptions {
  std::string session;  ///< empty: all
  enum class Force { none, run, kill } force = Force::none;
  std::string typed_session;  ///< must equal the session's whole id for `force`
  std::string address;        ///< of the other side; empty: as the journal says
  LinkOptions link;
  ReportFormat report = ReportFormat::automatic;
  std::string state_dir = kDefaultStateDir;
  Timeouts timeouts;
};

}  // namespace migrate

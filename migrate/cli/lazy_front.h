// The process that the user starts for `lazy-pages`, and what it and those that bring the pages tell each other.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "core/base/fd.h"
#include "lazypages/lazy_host.h"
#include "migrate/cli/core_options.h"

namespace migrate::cli {

struct FrontMemory;

/// The other end of the front. Any process that brings pages may call anything, also again.
class BehindFront {
 public:
  BehindFront(FrontMemory& memory, int socket, bool daemon) : memory_(memory), socket_(socket), daemon_(daemon) {}
  /// A restore may come.
  void ready() const;
  /// Memory is ours: the front ignores what asks it to end, as we do.
  void adopted() const;
  /// Readable when it has ended: whoever has adopted nothing ends, too.
  int fd() const { return socket_; }
  /// Where a test kills: MIGRATE_LAZY_STEP names the step at which the first process that comes there is killed.
  void step(std::string_view name) const;
  /// What the front exits with, once all of us have left; `why` goes to standard error.
  void ended(int code, const std::string& why = {}) const;

 private:
  FrontMemory& memory_;
  int socket_;
  bool daemon_;
};

/// Runs `serve` in processes that hold_lazily() makes; this one is their front: it tells --pidfile (its own pid) and
/// --status-fd that they are ready, collects orphans of theirs, and exits as they say. It may be killed: if they have
/// adopted memory by then, they go on without it. With --daemon the front goes on in the background, and its parent
/// returns when they are ready. Returns the exit code. Call it without threads.
///
/// `kept`: for LazyHost::kept().
int run_behind_front(const CoreOptions& options, std::map<std::string, Fd> kept,
                     const std::function<void(LazyHost&, const BehindFront&)>& serve);

}  // namespace migrate::cli

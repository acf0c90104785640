// What a process that brings pages for `restore --lazy-pages` does in its time: waits for a restore, takes over its
// memory, and goes on until it has all its pages.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "core/memory/page_images.h"
#include "core/memory/page_runs.h"
#include "lazypages/lazy_host.h"
#include "lazypages/stored_origin.h"
#include "migrate/cli/core_options.h"
#include "migrate/cli/lazy_front.h"
#include "migrate/cli/lazy_socket.h"
#include "migrate/cli/remote_origin.h"

namespace migrate::cli {

/// Throws Refusal if pages are only named and no page server is to be asked.
void refuse_without_server(const PagesByMemory& named, const std::string& folder);

class LazyServing {
 public:
  /// The host keeps the image folder as "images".
  LazyServing(const CoreOptions& options, LazyHost& host, const BehindFront& front, Logger& log)
      : options_(options), host_(host), front_(front), log_(log) {}
  LazyServing(const LazyServing&) = delete;
  LazyServing& operator=(const LazyServing&) = delete;
  /// Threads of the origins write into the memories until they are stopped, however run() ends.
  ~LazyServing() {
    if (origins_) origins_->stop();
  }
  /// Until all pages are there, or others must be made anew (LazyHost::alone), or the front is gone before a restore
  /// has come. What ends it for good is told to the front. Throws what another process may do better.
  void run();

 private:
  enum class Phase : uint8_t { waits, adopted, runs, whole, closes, lost };
  /// What the next process must know.
  struct State {
    Phase phase = Phase::waits;
    bool ours = false;               ///< the restore is one of ours
    bool all_alive = false;          ///< all tasks that were there at first were there in the end
    bool closed = false;             ///< the page server had nothing to give
    uint64_t spaces = 0, pages = 0;  ///< of what was adopted
    /// Tasks that were killed at the page server: how many, and the first of them.
    uint64_t gone = 0;
    std::array<uint64_t, 16> gone_ids{};
  };
  /// Where the pages of one restore come from.
  struct Origins {
    /// `server`: nullptr: all are in the folder.
    Origins(std::map<MemoryId, std::vector<StoredPages>> in_folder, RemoteOrigin* server, PagesByMemory at_server)
        : stored(std::move(in_folder)), remote(server), named(std::move(at_server)) {}

    StoredOrigin stored;
    RemoteOrigin* remote;
    PagesByMemory named;

    void want(MemoryId memory, uint64_t page);
    void stop();
    void check() const;
  };

  bool begin();
  std::optional<LazyRestore> await_restore(LazyListener& listener);
  void adopt(std::vector<LazyTask> tasks, PageImages& pages);
  void take_over();
  void find_origins();
  bool bring();
  void let_run();
  void end_whole();
  void lose(const std::string& why);
  void lose_gone();
  void note_gone(uint64_t task);
  void tell_server();
  void end();
  bool has_run();

  std::unique_ptr<RemoteOrigin> connect(bool resumes);
  LazyMemories::Wanted wanted();
  void remember(Phase phase, const std::string& why = {});
  std::string recall();

  const CoreOptions& options_;
  LazyHost& host_;
  const BehindFront& front_;
  Logger& log_;
  State state_;
  std::optional<LazyRestore> restore_;
  std::optional<PageImages> images_;
  std::unique_ptr<RemoteOrigin> remote_;
  std::unique_ptr<Origins> origins_;
  FillOrder stored_order_;
  std::unique_ptr<LazyMemories> memories_;
  std::set<MemoryId> told_;    ///< that their pages are lost; of this process
  std::mutex mutex_;           ///< of what follows
  std::set<MemoryId> losing_;  ///< of tasks that were killed at the page server, and not given up yet
};

}  // namespace migrate::cli

// What the source asks its destination about the tree: whether it may have there what it has here.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/base/types.h"
#include "migrate/session/source/inventory.h"
#include "migrate/session/source/source_peer.h"

namespace migrate {

/// One thread. What the destination refuses is thrown as Refusal.
class PeerQuestions {
 public:
  /// All outlive it. `label`: the tree as people know it.
  PeerQuestions(const SendOptions& options, SourcePeer& peer, Pid target, const std::string& label, Events& events);

  /// Looks at the tree, without touching it.
  void take_stock();
  const Inventory& inventory() const { return inventory_; }
  /// stat(2)'s st_dev of files that are the same there.
  const std::set<uint64_t>& shared_devices() const { return shared_devices_; }
  /// Before anything is touched. Tells all that is in the way.
  void check_there();
  /// Files and ports that the running tree opened since they were last checked.
  void check_news();
  /// What only visits tell: the securebits of threads, by pid.
  void ask_about_securebits(const std::map<pid_t, uint32_t>& securebits);
  /// The same of a tree that was never visited, when it stands.
  void ask_about_stop(std::span<const std::byte> images);
  /// Of the standing tree, beside everything else: what is new, and that what it wrote is on the disk.
  void begin_last_look();
  /// Waits for that, and asks.
  void end_last_look();

 private:
  /// Locks that the tree would give up for the move go to who waits for them.
  void refuse_waiters() const;
  /// What is in the way there.
  std::vector<std::string> ask(wire::Check& check);
  /// Asks about what look() finds. A running tree closes and removes files while they are looked up there, so only what
  /// is in the way twice in a row is (or if something always is).
  std::vector<std::string> ask_twice(const std::function<wire::Check&(int)>& look);
  void ask_about(wire::Check& told);
  [[noreturn]] void refuse_news(const std::string& reason) const;

  const SendOptions& options_;
  SourcePeer& peer_;
  const Pid target_;
  const std::string& label_;
  Events& events_;
  Inventory inventory_;
  std::set<uint64_t> shared_devices_;
  std::future<void> synced_;     ///< the files that the tree writes; its destructor waits
  std::future<Inventory> news_;  ///< of the frozen tree, likewise
};

}  // namespace migrate

// Missing pages that lie in files here: image files, or whatever else can be read at an offset.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "core/memory/page_images.h"
#include "core/memory/page_io.h"
#include "lazypages/fill_order.h"

namespace migrate {

/// Reads what is wanted in one thread and all the rest in another, which runs when nothing else does.
class StoredOrigin {
 public:
  /// Where each memory's pages are, ascending; the descriptors stay the caller's.
  explicit StoredOrigin(std::map<MemoryId, std::vector<StoredPages>> where) : where_(std::move(where)) {}
  ~StoredOrigin() { stop(); }
  StoredOrigin(const StoredOrigin&) = delete;
  StoredOrigin& operator=(const StoredOrigin&) = delete;

  /// For LazyMemories::Wanted. Any thread, also before start().
  void want(MemoryId memory, uint64_t address);
  /// Pages go to `sink` from now on, until stop().
  void start(PageSink& sink, FillOrder order);
  void stop();
  /// All was read and handed over.
  bool done() const { return filled_; }
  /// Throws what ended a thread, if anything did.
  void check() const;

 private:
  void serve_wanted(PageSink& sink);
  void fill(PageSink& sink);
  void hand_over(PageSink& sink, MemoryId memory, uint64_t address, uint64_t bytes,
                 std::vector<std::byte>& buffer) const;
  void fail() noexcept;

  const std::map<MemoryId, std::vector<StoredPages>> where_;
  mutable std::mutex mutex_;
  std::condition_variable wakeup_;
  std::deque<std::pair<MemoryId, uint64_t>> wanted_;
  FillOrder order_;
  std::exception_ptr failure_;
  std::atomic<bool> stop_{false}, filled_{false};
  std::vector<std::thread> threads_;
};

}  // namespace migrate

// Helpers of the feed's tests: memories with contents, a sink that checks what comes, connected ends.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <set>

#include "lazypages/feed/feed_wire.h"
#include "lazypages/feed/page_feeder.h"
#include "lazypages/feed/page_fetcher.h"
#include "pageserver/page_records.h"
#include "tests/eventually.h"
#include "tests/pageserver/testing.h"

namespace migrate::feed_testing {

using namespace migrate::testing;

constexpr MemoryId kA{MemoryId::Kind::task, 7}, kB{MemoryId::Kind::task, 9}, kShared{MemoryId::Kind::shmem, 3};
constexpr uint64_t page(uint64_t n) { return n * kPageSize; }

/// Memories of which every page is told from every other.
class Memories {
 public:
  void add(MemoryId memory, std::vector<PageRun> runs) {
    uint64_t end = 0;
    for (const PageRun& run : runs) end = std::max(end, run.address + run.pages * kPageSize);
    auto& content = contents_[memory] = random_bytes(end, memory.id + 17 * static_cast<uint64_t>(memory.kind));
    PageSource source;
    source.memory = memory;
    source.fd = Fd(check(::memfd_create("pages", MFD_CLOEXEC), "make", "memfd"));
    write_full(source.fd.get(), content, "memfd");
    source.runs = runs;
    missing_[memory] = std::move(runs);
    sources_.push_back(std::move(source));
  }
  void clear(MemoryId memory, uint64_t address, size_t bytes) {
    std::fill_n(contents_.at(memory).begin() + static_cast<ptrdiff_t>(address), bytes, std::byte{0});
    for (const PageSource& source : sources_)
      if (source.memory == memory) pwrite_full(source.fd.get(), at(memory, address, bytes), address, "memfd");
  }
  const std::vector<PageSource>& sources() const { return sources_; }
  std::vector<PageSource>& sources() { return sources_; }
  const MissingRuns& missing() const { return missing_; }
  std::span<const std::byte> at(MemoryId memory, uint64_t address, size_t bytes) const {
    return std::span(contents_.at(memory)).subspan(address, bytes);
  }

 private:
  std::map<MemoryId, std::vector<std::byte>> contents_;
  std::vector<PageSource> sources_;
  MissingRuns missing_;
};

/// What LazyMemories would be: knows what is missing, and notes in which order it comes.
class Destination : public PageSink {
 public:
  explicit Destination(const Memories& memories) : memories_(memories) {
    for (const auto& [memory, runs] : memories.missing())
      for (const PageRun& run : runs)
        for (uint64_t i = 0; i < run.pages; ++i) missing_.emplace(memory, run.address + i * kPageSize);
  }
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    if (before_write) before_write(memory, address, data.size() / kPageSize);
    const std::lock_guard lock(mutex_);
    const auto right = memories_.at(memory, address, data.size());
    EXPECT_EQ(std::memcmp(data.data(), right.data(), data.size()), 0) << memory.id << " at " << address;
    for (uint64_t at = address; at < address + data.size(); at += kPageSize) {
      order_.emplace_back(memory, at);
      missing_.erase({memory, at});
    }
    changed_.notify_all();
  }
  using Page = std::pair<MemoryId, uint64_t>;
  std::vector<Page> order() const {
    const std::lock_guard lock(mutex_);
    return order_;
  }
  bool has(MemoryId memory, uint64_t address) const {
    const std::lock_guard lock(mutex_);
    return !missing_.contains({memory, address});
  }
  size_t missing_pages() const {
    const std::lock_guard lock(mutex_);
    return missing_.size();
  }
  MissingRuns missing() const {
    const std::lock_guard lock(mutex_);
    MissingRuns runs;
    for (const auto& [memory, address] : missing_) {
      auto& of = runs[memory];
      if (!of.empty() && of.back().address + of.back().pages * kPageSize == address) {
        ++of.back().pages;
      } else {
        of.push_back({address, 1});
      }
    }
    return runs;
  }
  [[nodiscard]] bool wait_for_page(MemoryId memory, uint64_t address) {
    return wait([&] { return !missing_.contains({memory, address}); });
  }
  [[nodiscard]] bool wait_until_whole() {
    return wait([&] { return missing_.empty(); });
  }
  /// Called outside of the lock, with pages.
  std::function<void(MemoryId, uint64_t, uint64_t)> before_write;

 private:
  template <class Condition>
  bool wait(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), condition);
  }
  const Memories& memories_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::set<Page> missing_;
  std::vector<Page> order_;
};

struct Connection {
  FeedStreams source, destination;
};

inline Connection connected(size_t fill = 1, const std::string& keys = {}) {
  Connection out;
  const auto add = [&](std::unique_ptr<Stream> a, std::unique_ptr<Stream> b, bool urgent) {
    if (urgent) {
      out.source.urgent = std::move(a);
      out.destination.urgent = std::move(b);
    } else {
      out.source.fill.push_back(std::move(a));
      out.destination.fill.push_back(std::move(b));
    }
  };
  for (size_t i = 0; i <= fill; ++i) {
    if (keys.empty()) {
      auto [a, b] = raw_pair();
      add(std::move(a), std::move(b), i == 0);
      continue;
    }
    Pair p = tcp_pair();
    auto [c, s] = both([&] { return TlsContext(tls_config(keys, "a")).connect(std::move(p.client), "b", soon()); },
                       [&] { return TlsContext(tls_config(keys, "b")).accept(std::move(p.server), soon()); });
    add(std::move(c.stream), std::move(s.stream), i == 0);
  }
  return out;
}

/// What run() ended with: nothing, or the kind and the sentence.
template <class Side>
std::string end_of(Side& side) {
  try {
    side.run();
    return "";
  } catch (const Corrupt& e) {
    return std::string("corrupt: ") + e.what();
  } catch (const Disconnected& e) {
    return std::string("disconnected: ") + e.what();
  } catch (const TimedOut& e) {
    return std::string("timed out: ") + e.what();
  } catch (const Cancelled& e) {
    return std::string("cancelled: ") + e.what();
  } catch (const PeerFailed& e) {
    return std::string("failed there: ") + e.what();
  } catch (const std::exception& e) {
    return std::string("error: ") + e.what();
  }
}

/// One side's run() in a thread of its own. A test that gives up does not wait for it.
template <class Side>
class Running {
 public:
  explicit Running(Side& side) : side_(side), end_(std::async(std::launch::async, [&side] { return end_of(side); })) {}
  ~Running() {
    if (end_.valid()) side_.cancel();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  /// What it ended with.
  std::string get() { return end_.get(); }
  bool ended_within(std::chrono::milliseconds time) const { return end_.wait_for(time) == std::future_status::ready; }

 private:
  Side& side_;
  std::future<std::string> end_;
};

inline bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace migrate::feed_testing

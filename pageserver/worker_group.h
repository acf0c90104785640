// A thread for each of N pieces of work; the first failure stops all and is thrown once.
#pragma once

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "pageserver/stream.h"

namespace migrate {

/// Calls work(i) for each stream's index at the same time (0 in the calling thread) and returns when all are back. On a
/// failure `stop` is triggered, which the others must watch, and all streams are cut, so that the peer need not wait
/// for a time-out; what failed first is rethrown.
template <class Work>
void run_workers(std::span<const std::unique_ptr<Stream>> streams, StopEvent& stop, Work&& work) {
  const size_t count = streams.size();
  std::mutex mutex;
  std::exception_ptr first;
  const auto guarded = [&](size_t index) noexcept {
    try {
      work(index);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
      stop.trigger();
    }
  };
  {
    std::vector<std::jthread> threads;
    threads.reserve(count);
    try {
      for (size_t i = 1; i < count; ++i) threads.emplace_back(guarded, i);
    } catch (const std::system_error& e) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::make_exception_ptr(Error("start a thread", "for page streams", e.code().value()));
      stop.trigger();
    }
    if (count > 0) guarded(0);
  }
  if (!first) return;
  for (const auto& stream : streams) stream->abort();
  std::rethrow_exception(first);
}

}  // namespace migrate

#include "lazypages/stored_origin.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/fd.h"
#include "lazypages/idle.h"

namespace migrate {

void StoredOrigin::want(MemoryId memory, uint64_t address) {
  {
    const std::lock_guard lock(mutex_);
    wanted_.emplace_back(memory, address);
    order_.faulted(memory, address);
  }
  wakeup_.notify_one();
}

void StoredOrigin::start(PageSink& sink, FillOrder order) {
  {
    const std::lock_guard lock(mutex_);
    order_ = std::move(order);
    for (const auto& [memory, address] : wanted_) order_.faulted(memory, address);
  }
  const auto guarded = [this, &sink](void (StoredOrigin::*run)(PageSink&)) {
    return std::thread([this, &sink, run] {
      try {
        (this->*run)(sink);
      } catch (...) {
        fail();
      }
    });
  };
  threads_.push_back(guarded(&StoredOrigin::serve_wanted));
  threads_.push_back(guarded(&StoredOrigin::fill));
}

void StoredOrigin::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wakeup_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void StoredOrigin::fail() noexcept {
  const std::lock_guard lock(mutex_);
  if (!failure_) failure_ = std::current_exception();
}

void StoredOrigin::check() const {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

void StoredOrigin::hand_over(PageSink& sink, MemoryId memory, uint64_t address, uint64_t bytes,
                             std::vector<std::byte>& buffer) const {
  const auto& stored = where_.at(memory);
  auto i = std::ranges::upper_bound(stored, address, {}, [](const StoredPages& s) { return s.address + s.bytes; });
  buffer.resize(bytes);
  for (uint64_t got = 0; got < bytes; ++i) {
    if (i == stored.end() || i->address > address + got) throw Corrupt("page images", "pages are missing in them");
    const uint64_t skip = address + got - i->address, part = std::min(bytes - got, i->bytes - skip);
    if (pread_full(i->fd, std::span(buffer).subspan(got, part), i->offset + skip, "pages image") != part)
      throw Corrupt("page images", "a pages image is too short");
    got += part;
  }
  const OutOfIdle awake;
  sink.write(memory, address, buffer);
}

void StoredOrigin::serve_wanted(PageSink& sink) {
  std::vector<std::byte> buffer;
  for (std::unique_lock lock(mutex_);;) {
    wakeup_.wait(lock, [&] { return stop_ || !wanted_.empty(); });
    if (stop_) return;
    const auto [memory, address] = wanted_.front();
    wanted_.pop_front();
    lock.unlock();
    hand_over(sink, memory, address, kPageSize, buffer);
    lock.lock();
  }
}

void StoredOrigin::fill(PageSink& sink) {
  become_idle();
  std::vector<std::byte> buffer;
  while (!stop_) {
    std::optional<FillPiece> piece;
    {
      const OutOfIdle awake;
      const std::lock_guard lock(mutex_);
      piece = order_.next();
    }
    if (!piece) break;
    hand_over(sink, piece->memory, piece->address, piece->bytes, buffer);
  }
  filled_ = !stop_;
}

}  // namespace migrate

// The sending end of CRIU's page server protocol: pages of a dump here go into an image folder elsewhere.
#pragma once

#include <memory>

#include "core/memory/page_folder.h"
#include "pageserver/rate_limiter.h"
#include "pageserver/stream.h"

namespace migrate {

/// A page store behind a connection. finish() returns when the server says that it has stored everything. Throws
/// Disconnected, TimedOut, Cancelled; Corrupt when the server's answers are none.
class CriuPageClient final : public PageStore {
 public:
  /// `bandwidth_limit` in bytes a second; 0: none.
  explicit CriuPageClient(std::unique_ptr<Stream> stream, uint64_t bandwidth_limit = 0);
  bool open(MemoryId memory) override;
  PageFileBuffer buffer() override { return buffers_.take(); }
  void put(PageFileBuffer buffer, std::span<const PlacedPages> pages) override;
  void finish() override;

 private:
  void answer(std::span<std::byte> bytes);
  void send(std::span<const std::byte> data);
  std::unique_ptr<Stream> stream_;
  RateLimiter limiter_;
  StopEvent never_;
  PageBuffers buffers_{kHeld};
};

}  // namespace migrate

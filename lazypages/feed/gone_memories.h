// Memories whose tasks have ended at the source while pages of theirs were missing at the destination.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "core/base/fd.h"
#include "core/memory/page_io.h"

namespace migrate {

/// The source's, of one connection: what the destination is to be told, and what it has taken note of. Any thread may
/// call anything.
class GoneMemories {
 public:
  GoneMemories();

  /// `pages`: that will not be sent, besides those of earlier calls.
  void add(MemoryId memory, uint64_t pages);
  bool contains(MemoryId memory) const;
  /// Readable when take() has something.
  int fd() const { return event_.get(); }
  /// What was not told yet.
  std::vector<MemoryId> take();
  /// The destination has taken note. False: it was not told of that, or has said so before.
  [[nodiscard]] bool noted(MemoryId memory);
  /// Of all that was told, and all was.
  bool all_noted() const;
  std::map<MemoryId, uint64_t> pages() const;

 private:
  struct Gone {
    uint64_t pages = 0;
    enum class Known : uint8_t { here, told, noted } known = Known::here;
  };
  Fd event_;
  mutable std::mutex mutex_;
  std::map<MemoryId, Gone> gone_;
};

}  // namespace migrate

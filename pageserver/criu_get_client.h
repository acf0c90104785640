// The asking end of CRIU's page server protocol (GET): pages that a lazy dump has kept.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "core/memory/page_io.h"
#include "pageserver/stream.h"

namespace migrate {

/// Pages that were asked for.
struct AskedPages {
  MemoryId memory;
  uint64_t address = 0, pages = 0;
};

/// One thread may ask while another takes answers. Any exception leaves it unusable. Throws Disconnected, TimedOut (the
/// server is silent), Cancelled.
class CriuGetClient {
 public:
  /// The server must have at least one byte for us in `patience`, while something was asked for.
  CriuGetClient(std::unique_ptr<Stream> stream, std::chrono::milliseconds patience);
  Stream& stream() { return *stream_; }

  /// Before anything else. False: what answers is a lazy dump of ours, and another one than that with this run id.
  bool may_be(std::string_view run_id);
  void ask(const AskedPages& asked);
  /// The answer to the oldest request that has none; `asked` is what that asked for. At least one of its pages, from
  /// the first on; `into` has room for all. Returns how many came; 0: the task has ended there, and no page of it ever
  /// comes (only a lazy dump of ours says so). Throws Corrupt if it is another answer.
  uint64_t take(const AskedPages& asked, std::span<std::byte> into);
  /// Nothing is needed any more, and all was answered: the server may end what it dumped. Returns when it has said so.
  void close();

 private:
  std::unique_ptr<Stream> stream_;
  bool ours_ = false;
};

}  // namespace migrate

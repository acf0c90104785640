// The lazy host of a session (migrate/session/lazy) as the guardian and the agents see it: the processes that bring
// pages to a copy that runs already.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "core/memory/lazy_memory.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/journal/received_copy.h"
#include "migration.pb.h"

namespace migrate {

/// How it stands: pages that are missing, or why they will not come.
struct LazyState {
  uint64_t missing = 0;
  PagesEnd end;
};

/// One conversation. One thread.
class LazyClient {
 public:
  explicit LazyClient(PacketSocket socket) : socket_(std::move(socket)) {}
  /// nullopt: there is no such host (any more).
  static std::optional<LazyClient> connect(const std::string& path);

  /// It holds the memories when this returns. They stay the caller's until then, and are asked for again if one of its
  /// processes was killed meanwhile.
  void hold(const std::vector<LazyMemory>& memories, const Deadline& deadline);
  /// A feed that is about to come takes the place of an earlier one.
  void begin_feed(const wire::Feed& feed, const Deadline& deadline);
  /// The socket of one of its streams, untouched: the host shakes hands itself.
  void pass_stream(const Fd& socket);
  LazyState ask(const Deadline& deadline);
  /// The journal says how it ended; the host leaves.
  void settled();
  void discard();
  /// The source is gone: whoever touches a missing page gets SIGBUS.
  void lose(const std::string& why);

  /// For poll(2). Readable: something came unasked.
  int fd() const { return socket_.fd(); }
  /// What came unasked, if anything; throws GuardianGone when the host is gone.
  std::optional<LazyState> news();

 private:
  wire::LazyReply await(wire::LazyReply::BodyCase kind, const Deadline& deadline);
  PacketSocket socket_;
};

}  // namespace migrate

// Unix sockets remember who called socketpair(2), listen(2) and connect(2) (SO_PEERCRED, unix(7)): pid, effective ids
// and groups at that moment. So these calls are made by a process that has them.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <functional>
#include <map>
#include <span>
#include <vector>

#include "core/base/fd.h"
#include "core/files/file_owners.h"

namespace migrate {

struct SocketStep {
  enum class Kind : uint32_t { pair, listen, connect };
  Kind kind = Kind::pair;
  int type = 0;     ///< pair
  int backlog = 0;  ///< listen
  int socket = -1;  ///< listen, connect
  // connect: to a socket's file (O_PATH), which must be everybody's to write, or to an abstract name.
  int file = -1;
  sockaddr_un name{};
  socklen_t length = 0;
};

/// Makes the calls in this process, as `who` but for the pid. Gives the two ends of each pair. connect(2) does not wait
/// if the socket does not. Ends the process if it cannot become itself again.
std::vector<Fd> make_sockets(const PeerCredentials& who, std::span<const SocketStep> steps);
/// The same in a process with the right pid, where one can be had. At most kMaxSocketSteps at a time.
using SocketMaker = std::function<std::vector<Fd>(const PeerCredentials& who, std::span<const SocketStep> steps)>;
inline constexpr size_t kMaxSocketSteps = 100;

/// Steps of many sockets, done by one maker after the other.
class SocketBatch {
 public:
  explicit SocketBatch(const SocketMaker& maker) : maker_(maker) {}
  using Done = std::function<void(Fd, Fd)>;  ///< the ends, if it was a pair
  void add(const PeerCredentials& who, const SocketStep& step, Done done = {});
  /// Those of one maker in the order in which they were added.
  void run();

 private:
  struct Work {
    std::vector<SocketStep> steps;
    std::vector<Done> done;
  };
  const SocketMaker& maker_;
  std::map<PeerCredentials, Work> work_;
};

}  // namespace migrate

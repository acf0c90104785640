// TCP connections that are dropped (--tcp-close): both sides shall see a reset, not an end of data.
#pragma once

#include <sys/types.h>

#include <map>

#include "core/base/fd.h"

namespace migrate {

/// Resets the TCP connections that a task has open, in the task's name: for one whose program goes on elsewhere and
/// that will never run again here, frozen or not. Else its death would be told to the peers as an end of data. What
/// fails is left as it is.
void reset_connections(pid_t task) noexcept;

/// Makes TCP sockets that have been reset: over loopback, by a peer of ours.
class ResetSockets {
 public:
  /// With the error still to be told to the program (ECONNRESET, once; then all is at its end), or without. An empty
  /// one where the network has no loopback interface.
  Fd make(int family, bool to_be_told);

 private:
  std::map<int, Fd> listeners_;  ///< by family
};

}  // namespace migrate

// What of a program only a privilege can have given it: real-time scheduling, raised limits, a port below 1024. Root
// may have given it to a program that cannot take it itself; a sender that is not trusted to have had a root here may
// say so as well. So a bounded receiver (IdentityPolicy::bounds) takes such a thing only with the capability that the
// kernel would have asked for.
#pragma once

#include <sys/resource.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/image/image_set.h"
#include "images/core.pb.h"
#include "migrate/session/guardian/identity_policy.h"

namespace migrate {

struct Privilege {
  /// Numbers as on the wire (migration.proto, Check.Privilege).
  enum class Kind : uint32_t {
    realtime = 1,       ///< value: priority; allowed up to `limit`, its RLIMIT_RTPRIO
    nice = 2,           ///< value: 20 - nice; allowed up to `limit`, its RLIMIT_NICE
    io_realtime = 3,    ///< value: ioprio
    hard_limit = 4,     ///< detail: resource; value: limit
    oom_score = 5,      ///< value: - oom_score_adj
    locked_memory = 6,  ///< value: bytes; allowed up to `limit`, its RLIMIT_MEMLOCK
    send_buffer = 7,    ///< value: as SO_SNDBUF tells it
    receive_buffer = 8,
    mark = 9,          ///< value: SO_MARK
    priority = 10,     ///< value: SO_PRIORITY
    port = 11,         ///< value: port
    pipe_size = 12,    ///< value: bytes
    alarm_clock = 13,  ///< a timer that wakes the machine
    wake_lock = 14,    ///< EPOLLWAKEUP
    root_folder = 15,  ///< chroot(2)
    securebits = 16,   ///< value: prctl(PR_SET_SECUREBITS)
    deadline = 17,     ///< value: policy; scheduling that no limit allows
    raw_socket = 18,   ///< value: protocol
  };
  Kind kind;
  int32_t task = 0;
  uint32_t detail = 0;
  uint64_t value = 0;
  uint64_t limit = 0;
  uint64_t held = 0;  ///< capabilities, of all tasks that have it
};

/// What this host gives anybody.
struct HostBounds {
  std::array<uint64_t, RLIM_NLIMITS> hard_limits{};
  uint64_t send_buffer = 0, receive_buffer = 0;              ///< as getsockopt(2) tells them
  uint64_t grown_send_buffer = 0, grown_receive_buffer = 0;  ///< ... of a TCP socket that nobody set
  uint64_t pipe_size = 0;
  uint64_t first_free_port = 0;
  static HostBounds here();
};

/// All of the living tasks in `images`. Throws Corrupt.
std::vector<Privilege> privileges_of(const ImageSet& images);

/// Of these only the securebits, which nothing but a stop tells: of all threads. Throws Corrupt.
std::vector<Privilege> securebits_of(const ImageSet& images);

/// A sentence, without the remedy, if the policy does not allow it.
std::optional<std::string> why_not(const Privilege& privilege, const IdentityPolicy& policy, const HostBounds& bounds);

/// A capability set as two words, as the images have it.
uint64_t capability_bits(const google::protobuf::RepeatedField<uint32_t>& words);

}  // namespace migrate

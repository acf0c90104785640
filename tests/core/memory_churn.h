// A program that changes its memory wildly, in every way the kernel offers, for the tests of dirty tracking.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>

namespace migrate {

/// Shared with the program: how far it has come.
struct ChurnControl {
  std::atomic<uint64_t> steps{0};
  std::atomic<uint32_t> quiet{0};  ///< not 0: children and exec no more
};

/// Starts this test program anew as the churning program; it dies with the caller. `control` comes from new_control().
pid_t start_churn(uint64_t seed, int control_fd);
/// A control block in a memfd; `fd` gets the descriptor (inherited by programs that are started).
ChurnControl* new_churn_control(int& fd);

}  // namespace migrate

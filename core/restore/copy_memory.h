// How much memory a copy that is being made occupies: what a receiver bounds a session by.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace migrate {

/// The private pages of a process (anonymous ones and copies of file pages), in memory or swapped out, and its page
/// tables, of which a sender can make as much by touching a page each 2 MiB. 0 if the process is gone, or is not the
/// one that its own pid namespace numbers `inner`. 20 us for each process.
uint64_t private_memory(pid_t pid, pid_t inner);

/// The pages of a shared memory object, in memory or swapped out.
uint64_t object_memory(int fd);

}  // namespace migrate

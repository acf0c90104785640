// Descriptors in messages that nobody has received yet (unix(7), SCM_RIGHTS): what of them can be moved, and what
// images say of them.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/files/open_file.h"
#include "core/image/image_set.h"

namespace migrate {

/// The kernel's limit of one message (SCM_MAX_FD).
inline constexpr int kMostInMessage = 253;

/// As kinds see it. `socket`: who() of the one where it waits, which `holder` has.
OpenFile waiting_file(const ProcDir& holder, Fd fd, const std::string& socket);

/// Refusal for one that no task has, if it has state that is restored by way of a task's number.
void check_waiting_descriptor(const OpenFile& file, img::fd_types type);

/// Ids of the files that wait in queues, by the id of the socket. Throws Corrupt.
std::map<uint32_t, std::vector<uint32_t>> read_waiting_descriptors(const ImageSet& images);

}  // namespace migrate

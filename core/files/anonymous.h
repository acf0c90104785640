// Files without a path whose whole state /proc/PID/fdinfo tells: eventfd, timerfd, signalfd.
#pragma once

#include <cstdint>
#include <optional>

#include "core/files/open_file.h"

namespace migrate {

void dump_eventfd(const OpenFile& file, DumpContext& context);
void dump_signalfd(const OpenFile& file, DumpContext& context);

/// Live objects again. Hostile entries end in Corrupt or Error.
Fd restore_eventfd(const img::eventfd_file_entry& entry);
/// Armed with what was left at the dump less what has passed since `dumped_at_ns` on the tree's CLOCK_MONOTONIC.
Fd restore_timerfd(const img::timerfd_entry& entry, std::optional<int64_t> dumped_at_ns);
Fd restore_signalfd(const img::signalfd_entry& entry);

}  // namespace migrate

// Controlling terminals and foreground groups: only tasks of a session can set them, so their shells do.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "core/files/terminal_pairs.h"
#include "core/image/image_set.h"
#include "core/restore/shells.h"

namespace migrate {

/// In a shell that has just begun a session: makes it its controlling terminal.
void take_terminal(int terminal, pid_t task);
/// In a shell that has one.
void drop_terminal();
/// In the shell of the session's leader. -1: a group that has ended, whatever its number.
void give_foreground(int terminal, pid_t group);

/// In the coordinator, when all groups stand.
void set_foreground_groups(Shells& shells, TerminalPairs& terminals, const ImageSet& images);
/// /dev/tty, opened by the leader of its session; of a terminal without one the slave.
Fd open_controlling(Shells& shells, TerminalPairs& terminals, uint32_t index, int flags);

}  // namespace migrate

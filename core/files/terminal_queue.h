// What waits in a pseudo-terminal to be read: input typed at its master, output of its slave. The kernel has no way to
// look at it: it is read and put back.
#pragma once

#include <string>
#include <vector>

#include "core/base/fd.h"

namespace migrate {

struct TerminalQueue {
  std::vector<std::string> lines;  ///< whole ones, with their end; without one where an end of file was typed
  std::string rest;                ///< a line that is not whole yet; without line editing all of the input
  std::string output;
  bool empty() const { return lines.empty() && rest.empty() && output.empty(); }
};

/// While nobody uses the terminal. It is left as it was, but for wake-ups, and by a process of its own, so that our end
/// does not leave it half done. `slave`: a description of our own, O_NONBLOCK. Throws Refusal for what cannot be put
/// back, found before anything is read, and Error, naming `who`.
TerminalQueue look_at_queue(int master, int slave, const std::string& who);
/// Into a terminal that has its modes and nothing in it, before packet mode is set.
void fill_queue(int master, int slave, const TerminalQueue& queue, const std::string& who);
/// Whether output is stopped (^S, TCOOFF): nothing can be written then.
bool is_stopped(int master, int slave);

}  // namespace migrate

// Terminals that others hold, at a restore (--shell-job). A number means another terminal on each host and at each
// time, maybe somebody else's: the name in the images is never opened. What a restored program gets is the terminal of
// the command that restores it.
#pragma once

#include <map>
#include <string>

#include "core/base/fd.h"
#include "images/fdinfo.pb.h"

namespace migrate {

/// Throws Refusal if there is more than one of those in `entries`.
void check_one_terminal(const std::map<uint32_t, img::file_entry>& entries);

class CommandTerminal {
 public:
  /// `fd`: a descriptor of it, empty if there is none.
  explicit CommandTerminal(Fd fd) : fd_(std::move(fd)) {}
  static bool named_by(const img::reg_file_entry& entry);
  /// A description of its own. Throws Refusal if there is none.
  Fd open(const img::reg_file_entry& entry, int flags);

 private:
  Fd fd_;
};

}  // namespace migrate

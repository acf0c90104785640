// Turning a forked child into a background process of ours: guardians and watches outlive terminals and agents.
#pragma once

#include <initializer_list>

namespace migrate {

/// For a child between fork and exec; async-signal-safe calls only. A session of its own, deaf to a terminal's signals,
/// nothing blocked, standard input and output on /dev/null, standard error kept. The descriptors `keep` (four at most)
/// become 3, 4, ...; all others are closed.
void go_to_background(std::initializer_list<int> keep) noexcept;

/// go_to_background(), then this program again with `argv`.
[[noreturn]] void execute_in_background(std::initializer_list<int> keep, char* const* argv) noexcept;

}  // namespace migrate

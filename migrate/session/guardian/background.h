// Turning a forked child into a background process of ours: guardians and watches outlive terminals and agents.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

namespace migrate {

/// For a child between fork and exec; async-signal-safe calls only. A session of its own, deaf to a terminal's signals,
/// nothing blocked, standard input and output on /dev/null, standard error kept. The descriptors `keep` (four at most)
/// become 3, 4, ...; all others are closed.
void go_to_background(std::initializer_list<int> keep) noexcept;

/// The words of a command as execve(2) takes them, as long as they stay as they are. To be made before fork(2).
std::vector<char*> argv_of(std::vector<std::string>& words);

/// go_to_background(), then this program again with `argv`.
[[noreturn]] void execute_in_background(std::initializer_list<int> keep, char* const* argv) noexcept;

}  // namespace migrate

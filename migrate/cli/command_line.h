// Verbs and options.
#pragma once

namespace migrate::cli {

/// Parses them and runs the verb; gives the exit code. Failures of the verb are exceptions.
int run_command_line(int argc, char** argv);

}  // namespace migrate::cli

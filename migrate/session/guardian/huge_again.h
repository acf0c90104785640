// What came as small pages and was huge pages at the source is made huge pages again, when the program runs here and
// has all its memory: by a process of its own, which nobody waits for and which ends with its work. It is there from
// the moment when the program runs on, so that it needs nobody who might be dead by then.
#pragma once

#include <span>
#include <string>

#include "core/base/log.h"
#include "core/memory/page_runs.h"
#include "migrate/session/journal/trees.h"
#include "migration.pb.h"

namespace migrate {

/// Of the tasks that live, `huge` by the numbers that they have in their own namespace.
wire::HugeAgain huge_tasks(std::span<const TaskId> tasks, const PagesByMemory& huge);

/// Starts the verb `guardian-huge SESSION [STATE_DIR]`: with `wait_in`, which is that folder, it begins when the
/// journal there says that nothing is missing any more. Throws Error.
void start_huge_again(const SessionId& id, const wire::HugeAgain& tasks, const std::string& wait_in);

/// The verb: descriptor 3 is a memory file with a HugeAgain. At most a tenth of the time the program may have to wait
/// for it. Gives up a task that has ended or is being moved on, and all when memory is short.
int run_huge_again(int argc, char** argv, Logger& log);

}  // namespace migrate

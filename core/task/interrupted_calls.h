// Stopping a running thread ends its epoll_wait(2) with EINTR, though no signal came (signal(7)). StoppedTree mends
// those that wait for ever; who stops a task just for a visit also mends those with a time-out: the threads go on as if
// they had not been stopped.
#pragma once

#include "core/base/procfs.h"
#include "core/freeze/stopped_tree.h"
#include "core/task/restart.h"

namespace migrate {

/// Before the stop: which threads of the running task wait in such calls, and since when. Empty if none does.
SleepSurvey survey_interruptible(const ProcDir& task);

/// After it, before anything is made to run: threads whose call ended for the stop make it again with the rest of its
/// time, or with its whole time if it began after `survey`. Calls whose time-out stands in memory (epoll_pwait2, ...)
/// stay ended. The kernel's own restart code is set: a signal with a handler that comes meanwhile ends the call with
/// EINTR.
void mend_interrupted(StoppedTask& task, const SleepSurvey& survey);

}  // namespace migrate

// Threads that were stopped in the middle of the vdso's code.
#pragma once

#include "core/base/procfs.h"
#include "core/base/types.h"
#include "core/freeze/stopped_tree.h"

namespace migrate {

/// Such a thread has read a part of a clock: the kernel's time page, and not yet the offset of its time namespace, say.
/// It would go on with the other part as it is where and when the images are restored (lib/vdso/gettimeofday.c: after
/// the last look at the sequence number nothing tells), and tell a time that is hours off. So it is stepped out, which
/// takes 2 us an instruction; one that is in a system call is left alone. `thread` must be in an event stop, and is
/// again; its registers and its XSAVE state are read anew. No signal is delivered to it. Throws Error.
void leave_vdso(const ProcDir& task, RemoteRange vdso, StoppedThread& thread);

}  // namespace migrate

#!/usr/bin/env python3
"""Leaves out the restore of one subject after the other; some workload must notice each.

    left_out.py [--only REGEX] [--list]

A case dumps the workloads that are there for its subject, restores them with MIGRATE_TEST_LEAVE_OUT (core/image/leave_out.h), and
must find one of them unwell. A subject without a case fails."""
import os
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from lib import programs, suite, tool  # noqa: E402
from lib.process import exists, run, wait_for  # noqa: E402

# subject: small workloads, or one of the others, that are there for it.
NOTICED_BY = {
    "signal dispositions": "signals.handler signals.ignored",
    "flags of signal handlers": "signals.nodefer signals.restart_flag",
    "masks of signal handlers": "signals.handler_mask",
    "signal masks": "signals.mask signals.mask_of_thread",
    "queued signals": "signals.pending signals.queue_in_order",
    "queued signals of threads": "signals.pending_of_thread",
    "alternative stacks": "signals.alternative_stack signals.alternative_stack_of_thread",
    "soft limits": "processes.limit_files processes.limit_stack",
    "interval timers": "itimer",
    "POSIX timers": "timers",
    "personality": "processes.personality",
    "subreaper": "processes.subreaper",
    "out-of-memory score": "processes.out_of_memory_score",
    "exit codes": "processes.zombie_exited processes.zombie_killed",
    "names": "memory.command_line processes.threads_with_names",
    "niceness": "scheduling.niceness",
    "scheduling policies": "scheduling.batch scheduling.fifo",
    "death signals": "processes.death_signal_told",
    "robust lists": "processes.robust_list",
    "restartable sequences": "threads.restartable_sequence",
    "clear_child_tid": "processes.tid_address",
    "GS bases": "threads.gs_base",
    "vector registers": "threads.xmm_register",
    "control of floating point": "threads.mxcsr threads.x87_control",
    "user ids": "credentials.nobody credentials.three_users",
    "saved user ids": "credentials.saved_user credentials.saved_user_used",
    "group ids": "credentials.three_groups",
    "groups": "credentials.many_groups credentials.group_used",
    "effective capabilities": "credentials.effective_set credentials.capability_missed",
    "inheritable capabilities": "credentials.inheritable_set",
    "ambient capabilities": "credentials.ambient_set",
    "securebits": "credentials.securebits",
    "no_new_privs": "processes.no_new_privileges",
    "dumpable": "processes.not_dumpable",
    "THP switch": "memory.thp_disabled",
    "advice on memory": "memory.dontfork memory.wipeonfork memory.dontdump",
    "locked memory": "memory.mlock memory.mlock_on_fault",
    "memory that grows down": "memory.grows_down",
    "heap's end": "memory.heap",
    "auxiliary vector": "memory.auxiliary_vector",
    "offsets": "files.offset files.offset_beyond_end",
    "O_APPEND": "files.append",
    "O_NONBLOCK": "files.nonblocking pipes.one_end_nonblocking",
    "packet mode of pipes": "pipes.packets",
    "owners of descriptors": "files.owner_and_signal",
    "counters of eventfd": "events.counter",
    "semaphores of eventfd": "events.semaphore",
    "epoll lists": "events.level events.nested",
    "epoll data": "events.level",
    "epoll flags": "events.edge events.one_shot",
    "signalfd masks": "signals.signalfd signals.signalfd_mask",
    "timerfd": "events.timer",
    "shutdown of sockets": "unixsock",
    "SO_PASSCRED": "unixsock",
    "close-on-exec": "files.close_on_exec",
    "umask": "processes.umask",
    "working directory": "processes.working_directory",
    "seals": "events.seal_shrink events.seal_write",
    "modes of memory files": "events.memory_file_mode",
    "names of memory files": "events.memory_file",
    "sizes of pipes": "pipes.large pipes.small",
    "descriptors in messages": "in_flight.file_in_stream in_flight.empty_message",
    "senders of messages": "unix_sockets.senders_told_with_times",
    "processor affinity": "scheduling.one_processor",
    "I/O priority": "scheduling.io_best_effort",
    "timer slack": "processes.timer_slack",
    "machine-check policy": "processes.machine_check_policy",
    "reset on fork": "scheduling.reset_on_fork",
    "core dump filter": "processes.core_dump_filter",
    "denied executable memory": "memory.deny_write_execute",
    "memory merge": "memory.merge_any",
    "locks of what comes": "memory.mlockall_future",
    "exit signals": "processes.exit_signal",
    "users of zombies": "processes.zombie_of_other_user",
    "time slices": "processes.custom_slice",
    "memory policies of mappings": "memory.policy_of_mapping",
    "seals of memory": "memory.sealed memory.sealed_file",
    "droppable memory": "memory.droppable",
    "attributes of threads": "memory.policy_of_task",
    "extended attributes of deleted files": "files.deleted_with_attributes",
}


def subjects(binary):
    """What the program under test can leave out."""
    code, out = run([binary, "left-out-names"])
    if code != 0:
        raise tool.Failed(f"left-out-names said {code}: {out.strip()[-300:]}")
    return out.splitlines()


def every_subject_has_a_case(context, folder):
    known = set(subjects(context.binary))
    suite.expect(known == set(NOTICED_BY), f"without a case: {sorted(known - set(NOTICED_BY))}, unknown: {sorted(set(NOTICED_BY) - known)}")


def left_out(subject, context, folder):
    context = cases.Context(context.binary, context.workloads, context.top)
    names = NOTICED_BY[subject].split()
    program = cases.start(context, names if "." in names[0] else names[0], os.path.join(folder, "program"))
    images = os.path.join(folder, "images")
    t = tool.Tool(context.binary, folder)
    try:
        program.ready()
        skipped = getattr(program, "skipped", {})
        if len(skipped) == len(names):
            raise suite.Skip("; ".join(skipped.values()))
        program.check()
        program.remember()
        t.dump(program.pid, images)
        program.reap_old()
        wait_for(lambda: not exists(program.pid), "the dumped tree to be gone", 10)
        os.environ["MIGRATE_TEST_LEAVE_OUT"] = subject  # we are the case's process
        program.moved_to(t.restore(images), None)
        try:
            program.check()
        except programs.Unwell as e:
            return str(e)[:150]
        raise programs.Unwell(f"nobody noticed that {subject} was left out: {', '.join(names)} are well")
    finally:
        program.end()


def all_cases():
    found = {"every-subject": every_subject_has_a_case}
    for subject in NOTICED_BY:
        name = re.sub(r"[^A-Za-z0-9_]+", "-", subject)
        found[name] = lambda context, folder, subject=subject: left_out(subject, context, folder)
    return found


if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), all_cases(), "mleft-"))

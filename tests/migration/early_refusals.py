"""What a destination refuses is refused before anything is touched: no session has begun, so nothing was visited or stopped.
What a stop alone can tell is refused then, with everything undone. Cases of refusals.py."""

from lib.process import descendants, find_moved, kill_all, wait_for
from lib.suite import expect
from refusing import HAS_FD, NOT_BY_ROOT
from send_refusals import Hosts, send_refuses

BOUNDED = ("--allow-uid", "65534", "--allow-gid", "65534")


def moves(kind, receive=(), send=()):
    """The honest counterpart: it is taken."""
    def case(context, folder):
        with Hosts(context, folder) as h:
            program = h.start(kind)
            h.receive(*receive)
            code, out, there = h.send(program.pid, *send)
            expect(code == 0, f"send exited {code}: {out.strip()[-600:]}\nreceive said: {there.strip()[-300:]}")
            copy = find_moved(program.pid, "python3", program.folder)
            expect(copy, "no copy runs at the destination")
            seen = program.beat()
            wait_for(lambda: program.beat() != seen, "the copy to run on", 10)
            kill_all([copy, *descendants(copy)])
    return case


def refused(kind, *patterns, receive=BOUNDED, **named):
    return send_refuses(kind, *patterns, receive=receive, both=True, **named)


def also_stopped(kind, pattern):
    """Only the stop tells: it is undone, and no failure of ours."""
    return send_refuses(kind, pattern, send=("--mode", "stop-copy"), began=True)


CASES = {
    "early/file": refused("roots-file", "/private, which " + NOT_BY_ROOT, receive=()),
    "early/file-for-one-user": refused("roots-file", "/private, which user 65534 may not use here: it may not write to it;"),
    "early/working-folder": refused("roots-folder", "/closed, which " + NOT_BY_ROOT, receive=()),
    "early/deleted-file": refused("roots-deleted-file", "the deleted file .*/closed/gone, which user 65534 may not use here"),
    "early/socket": refused("roots-socket", "Unix socket .*/closed/socket of user 0 and group 0, which no task"),
    "early/socket-where-root-may-not": refused("roots-socket", "Unix socket .*/closed/socket, which " + NOT_BY_ROOT, receive=()),
    "early/forced-buffer": refused("forced-buffer", "task {pid} has a socket with a receive buffer of [0-9]+ bytes, .* and not CAP_NET_ADMIN"),
    "early/mark": refused("marked", "task {pid} has a socket with SO_MARK 7 and not CAP_NET_ADMIN"),
    "early/raw-socket": refused("raw-ip", "task {pid} has a raw socket of protocol 1 and not CAP_NET_RAW"),
    "early/mptcp": send_refuses("mptcp-listener", "the program has MPTCP sockets, and the destination has none; set net.mptcp.enabled there",
                                through=("sh", "-c", 'echo 0 >/proc/sys/net/mptcp/enabled && exec "$@"', "sh"), both=True),
    "early/mptcp-connection": send_refuses("mptcp-connection", HAS_FD + ", an MPTCP connection; have the program close it first"),
    "early/interface": send_refuses("bound-to-interface", "the destination has no network interface {detail}, to which a socket"),
    "early/interface-gone": send_refuses("interface-gone", HAS_FD + ", a socket bound to a network interface that is not there any more"),
    "early/unix-from-another-network": send_refuses("unix-from-another-network", HAS_FD + ", a Unix socket of another network namespace"),
    "early/alarm-clock": refused("alarm-clock", "task {pid} has a timer that wakes the machine and not CAP_WAKE_ALARM"),
    "early/thread-of-another": refused("thread-of-another", "a task runs as uid 1234, which the receiver does not allow",
                                       receive=("--allow-uid", "0")),
    "early/removed-name": send_refuses("removed-name", HAS_FD + ", the file .*/removed, which was removed there but has another name"),
    "early/removed-name-mapped": send_refuses(
        "removed-name-mapped", "task {pid} uses as map_files/.*, the file .*/removed, which was removed there but has another name"),
    "early/ebpf-filter": send_refuses("ebpf-filter", HAS_FD + ", a socket with an eBPF filter"),
    "early/reuseport-program": send_refuses("reuseport-program", HAS_FD + ", a socket of a group in which a program chooses"),
    "early/deadline": send_refuses("deadline", "thread {pid} of task {pid} runs under scheduling policy 6"),
    "early/session-of-two-parents": send_refuses("session-of-two-parents", "the tasks of session {detail} .whose leader has ended. have several parents"),
    "early/threads-beyond-the-limit": refused("thread-of-another", "has 1 task with 1 more thread, and the receiver takes 1 .--max-tasks",
                                              receive=("--max-tasks", "1")),
    "early/socket-made-by-another": refused("roots-pair", HAS_FD + ", a Unix socket, which says that user 0 in group 0 made its other end"),
    "early/signals-beyond-the-limit": send_refuses(
        "timers-beyond-the-limit", "task {pid} has 20 queued signals and timers, and the receiver's own limit is 15;",
        through=("prlimit", "--sigpending=15:15"), both=True),
    "early/epoll-on-its-way": send_refuses("epoll-on-its-way", HAS_FD + r" and, on its way there \(SCM_RIGHTS\), an epoll"),
    "early/not-accepted": send_refuses("not-accepted", HAS_FD + ", the listening Unix socket .* with 1 connections not accepted yet"),
    "early/epoll-of-closed": send_refuses("epoll-of-closed", HAS_FD + ", an epoll that watches a file under number [0-9]+, where it is no"),
    "early/epoll-of-another": send_refuses("epoll-of-another", HAS_FD + ", an epoll that watches a file under number [0-9]+, where it is no"),
    "early/honest-epoll": moves("watching"),
    "early/32-bit": send_refuses("child-of-32-bits", "task {detail} runs a 32-bit program"),
    "early/vdso": send_refuses("child-without-vvar", "the vdso of task {detail} is laid out differently"),
    # Only a visit tells; the first ones of the rounds, before any page goes.
    "early/securebits": refused("securebits", "task {pid} has securebits 1 and not CAP_SETPCAP", began=True),
    "early/securebits-without-rounds": refused("securebits", "task {pid} has securebits 1 and not CAP_SETPCAP",
                                               send=("--mode", "stop-copy"), began=True),
    "early/honest-securebits-without-rounds": moves("securebits", send=("--mode", "stop-copy")),
    "early/honest-user": moves("nobody"),
    "early/honest-timers": moves("timers-beyond-the-limit"),
    "early/honest-pair-of-root": moves("roots-pair"),
    "early/honest-user-alone": moves("nobody", BOUNDED),
    "early/favours-of-a-trusted-root": moves("marked"),
    "early/landlock-without-rounds": also_stopped("landlock", "thread {pid} of task {pid} is restricted by landlock"),
    "early/user-dispatch": send_refuses("user-dispatch", "has its system calls dispatched to itself", began=True),
    "early/user-dispatch-without-rounds": also_stopped("user-dispatch", "has its system calls dispatched to itself"),
}

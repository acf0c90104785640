"""What `migrate dump`, pre-dump and restore refuse."""
import ctypes
import os
import re
import signal
import socket
import subprocess
import threading
import types

import texts
from lib import tool
from lib.process import all_pids, kill_all, read, run, stat_fields, wait_for
from lib.skip import Skip
from lib.suite import expect
from refusing import HAS_FD, NOT_BY_ROOT, Stubborn, Untouched, expect_sentence

PTRACE_SEIZE = 0x4206


def dump_refused(context, folder, pid, patterns, values, options=(), verb="dump"):
    images = os.path.join(folder, "images")
    os.makedirs(images, exist_ok=True)
    code, out = run([context.binary, verb, "-t", pid, "-D", images, *options], log=os.path.join(folder, "commands.log"))
    expect(code == 2, f"{verb} exited {code}, not 2: {out.strip()[-600:]}")
    expect_sentence(out, patterns, values)
    sentences = [x for x in out.strip().splitlines() if x.startswith("migrate: ")]
    texts.sentence_fits_verb(context.binary, out, verb)
    expect(sentences and all("; " in s for s in sentences), f"no sentence with what to do: {out.strip()[-600:]}")
    expect(len(set(sentences)) == len(sentences), f"said twice: {out.strip()[-600:]}")
    expect(not os.listdir(images), f"left in the image folder: {os.listdir(images)}")


def holding(kind, *patterns, arguments=(), prefix=(), options=(), set_up=None, verb="dump"):
    """`set_up`: gives (arguments, descriptors to pass, things to keep, values of the patterns)."""
    def case(context, folder):
        more, fds, kept, values = set_up(folder) if set_up else ((), (), None, {})
        program = Stubborn(os.path.join(folder, "program"), kind, *arguments, *more, prefix=prefix, pass_fds=fds)
        try:
            program.ready()
            untouched = Untouched(program)
            for attempt in range(2):
                dump_refused(context, folder, program.pid, patterns, {"pid": program.pid, "detail": program.detail, **values}, options, verb)
            untouched.expect()
        finally:
            program.end()
            del kept
    return case


def accepting(folder):
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    return ("127.0.0.1", port), (), server, {"peer": f"127.0.0.1:{port}"}


def unix_listener(folder):
    path = os.path.join(folder, "outside")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    accepted = []
    threading.Thread(target=lambda: accepted.append(server.accept()), daemon=True).start()
    return (path,), (), (server, accepted), {}


def pipe_from_here(folder):
    r, w = os.pipe()
    return (w,), (w,), os.fdopen(r), {"fd": w}


def memfd_from_here(folder):
    import mmap
    fd = os.memfd_create("outside")
    os.ftruncate(fd, 4096)
    return (fd,), (fd,), mmap.mmap(fd, 4096), {"outside": os.getpid()}


class Segment:
    """System V shared memory of ours, attached."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.shmat.restype = ctypes.c_void_p
        self.id = self.libc.shmget(0, 8192, 0o1600)
        self.address = self.libc.shmat(self.id, None, 0)
        self.libc.shmctl(self.id, 0, None)  # IPC_RMID: gone with the last user

    def __del__(self):
        self.libc.shmdt(ctypes.c_void_p(self.address))


def segment_from_here(folder):
    segment = Segment()
    return (segment.id,), (), segment, {"outside": os.getpid()}


def waiting_connection(context, folder):
    program = Stubborn(os.path.join(folder, "program"), "tcp-backlog")
    try:
        program.ready()
        port = int(read(os.path.join(program.folder, "port")))
        with socket.create_connection(("127.0.0.1", port)):
            untouched = Untouched(program)
            dump_refused(context, folder, program.pid, ["task {pid} has fd {fd}", "not accepted yet"],
                         {"pid": program.pid, "fd": program.detail})
            untouched.expect()
    finally:
        program.end()


def frozen(context, folder):
    """Whoever froze it decides; a visit would wait for an answer that does not come."""
    mounts = [line.split() for line in read("/proc/self/mountinfo").splitlines()]
    v2 = next((m[4] for m in mounts if m[m.index("-") + 1] == "cgroup2"), None)
    v1 = next((m[4] for m in mounts if m[m.index("-") + 1] == "cgroup" and "freezer" in m[-1].split(",")), None)
    program = Stubborn(os.path.join(folder, "program"), "plain")
    try:
        program.ready()
        for point, file, on, off in ((v2, "cgroup.freeze", "1", "0"), (v1, "freezer.state", "FROZEN", "THAWED")):
            if point is None:
                continue
            cgroup = os.path.join(point, f"refusals-{os.getpid()}")
            os.mkdir(cgroup)
            try:
                write(f"{cgroup}/cgroup.procs", program.pid)
                untouched = Untouched(program)
                write(f"{cgroup}/{file}", on)
                wait_for(lambda: "frozen 1" in read(f"{cgroup}/cgroup.events") or read(f"{cgroup}/freezer.state").startswith("FROZEN"), "it to freeze", 5)
                for verb in ("dump", "pre-dump"):
                    dump_refused(context, folder, program.pid, ["task {pid} stands in the frozen cgroup {cgroup}"],
                                 {"pid": program.pid, "cgroup": cgroup}, verb=verb)
                write(f"{cgroup}/{file}", off)
                untouched.expect()
            finally:
                write(f"{cgroup}/{file}", off)
                write(f"{point}/cgroup.procs", program.pid)
                os.rmdir(cgroup)
    finally:
        program.end()


def write(path, text):
    with open(path, "w") as f:
        f.write(str(text))


def traced(context, folder):
    program = Stubborn(os.path.join(folder, "program"), "plain")
    program.ready()
    r, w = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        ok = ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, program.pid, 0, 0) == 0
        os.write(w, b"y" if ok else b"n")
        while True:
            signal.pause()
    try:
        expect(os.read(r, 1) == b"y", "the tracer could not seize")
        untouched = Untouched(program)
        dump_refused(context, folder, program.pid, ["task {pid} is traced by task {tracer}"], {"pid": program.pid, "tracer": tracer})
        untouched.expect()
    finally:
        kill_all([tracer])
        program.end()


def outside_session(context, folder):
    program = Stubborn(os.path.join(folder, "program"), "plain", own_session=False)
    try:
        program.ready()
        untouched = Untouched(program)
        dump_refused(context, folder, program.pid, ["session {sid}, whose leader is outside", "--shell-job"], {"sid": os.getsid(0)})
        untouched.expect()
    finally:
        program.end()


def own_ancestor(context, folder):
    dump_refused(context, folder, os.getpid(), ["task {pid} is this process or an ancestor of it"], {"pid": os.getpid()})


def no_such_task(context, folder):
    free = subprocess.Popen(["true"])
    free.wait()
    dump_refused(context, folder, free.pid, ["there is no task {pid}"], {"pid": free.pid})


def zombie(context, folder):
    dead = subprocess.Popen(["true"], start_new_session=True)
    wait_for(lambda: stat_fields(dead.pid)[0] == "Z", "a zombie", 10)
    try:
        dump_refused(context, folder, dead.pid, ["task {pid} is a zombie"], {"pid": dead.pid})
    finally:
        dead.wait()


def pid_taken(context, folder):
    """Restored in place while the original runs."""
    program = Stubborn(os.path.join(folder, "program"), "plain")
    try:
        program.ready()
        t, images = tool.Tool(context.binary, folder), os.path.join(folder, "images")
        t.dump(program.pid, images, "-R")
        untouched = Untouched(program)
        code, out = run([context.binary, "restore", "-D", images, "-d"], log=t.log)
        expect(code == 2, f"restore exited {code}: {out}")
        expect_sentence(out, ["pid {pid} is taken on this host", "end that process"], {"pid": program.pid})
        untouched.expect()
    finally:
        program.end()


def limit_above_ours(context, folder):
    """A restore by a command with such a limit could not give the program its own back, and it would be dead."""
    wrapper = os.path.join(folder, "migrate-limited")
    with open(wrapper, "w") as f:
        f.write(f'#!/bin/sh\nulimit -S -l 64 && ulimit -H -l 64 && exec setpriv --bounding-set=-sys_resource {context.binary} "$@"\n')
    os.chmod(wrapper, 0o755)
    limited = types.SimpleNamespace(binary=wrapper)
    holding("plain", "task {pid} has a hard limit \\(RLIMIT_MEMLOCK\\) above ours")(limited, folder)


def kernel_thread(context, folder):
    pid = next((p for p in all_pids() if re.search(r"^Kthread:\s+1$", read(f"/proc/{p}/status"), re.M)), None)
    if pid is None:
        raise Skip("no kernel thread is to be seen here, or the kernel does not tell (Linux 6.8 does); run it outside of a container")
    for verb in ("dump", "pre-dump"):
        dump_refused(context, folder, pid, ("task {pid} is a kernel thread",), {"pid": pid}, verb=verb)


def by_a_user(context, folder):
    program = Stubborn(os.path.join(folder, "program"), "plain")
    try:
        program.ready()
        code, out = run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", context.binary, "dump", "-t",
                         program.pid, "-D", folder], log=os.path.join(folder, "commands.log"))
        expect(code == 2 and "run by user 65534, lacks CAP_CHOWN; run as root" in out, f"exit {code}: {out}")
    finally:
        program.end()


def no_dump_there(context, folder):
    code, out = run([context.binary, "restore", "-D", folder], log=os.path.join(folder, "commands.log"))
    expect(code == 2 and f"folder {folder} holds no dump" in out, f"exit {code}: {out}")


CASES = {
    "dump/kernel-thread": kernel_thread,
    "dump/by-a-user": by_a_user,
    "dump/restore-of-none": no_dump_there,
    "dump/file-that-nobody-may-open": holding("roots-file", "a restore here would refuse .*/private, which " + NOT_BY_ROOT),
    "dump/folder-that-nobody-may-enter": holding("roots-folder", "a restore here would refuse .*/closed, which " + NOT_BY_ROOT),
    "dump/socket-that-nobody-may-bind": holding("roots-socket", "a restore here would refuse Unix socket .*/closed/socket, which " + NOT_BY_ROOT),
    "dump/tcp-connection": holding("tcp", HAS_FD + ", an established TCP connection to {peer}", "--tcp-close", set_up=accepting),
    "dump/tcp-not-accepted": waiting_connection,
    "dump/udp-corked": holding("corked", HAS_FD + ", a UDP socket with a datagram not sent yet"),
    "dump/tcp-ended-unread": holding("ended-unread", HAS_FD + ", a TCP connection that has ended, with 4 bytes not read yet", "--tcp-close"),
    "dump/lost-socket-name": holding("lost-socket-name", HAS_FD + ", the Unix socket .*, whose file has another name now that cannot be found"),
    "dump/netlink": holding("netlink", HAS_FD + ", a netlink socket of protocol 16"),
    "dump/packet-socket": holding("packet", HAS_FD + ", a packet socket"),
    "dump/interface-gone": holding("interface-gone", HAS_FD),
    "dump/unix-from-another-network": holding("unix-from-another-network", HAS_FD),
    "dump/unix-socket-to-outside": holding("unix-outside", HAS_FD + ", a Unix socket connected to .*outside of the tree", set_up=unix_listener),
    "dump/epoll-on-its-way": holding("epoll-on-its-way", HAS_FD + r" and, on its way there \(SCM_RIGHTS\), an epoll"),
    "dump/inotify-events": holding("inotify", HAS_FD + ", an inotify instance with events that the program has not read"),
    "dump/fanotify": holding("fanotify", HAS_FD + ", a fanotify group"),
    "dump/message-queue": holding("message-queue", HAS_FD + ", the POSIX message queue /migrate-test-[0-9]+"),
    "dump/dnotify": holding("notified", HAS_FD + ", the folder .* notified by signals"),
    "dump/terminal": holding("terminal", HAS_FD + ", the terminal /dev/pts/[0-9]+, whose other end is held by process [0-9]+ "
                             r"\(python3\), outside of the tree; redirect it to a file, or use --shell-job"),
    "dump/terminal-with-guest": holding("terminal-with-guest", HAS_FD + ", the terminal /dev/ptmx, whose slave /dev/pts/[0-9]+ is held "
                                        "by process [0-9]+ .*, outside of the tree"),
    "dump/stopped-terminal": holding("stopped-terminal", HAS_FD + ", the terminal /dev/ptmx, whose output is stopped; .*\\^Q"),
    "dump/io_uring": holding("io-uring", HAS_FD + ", an io_uring instance"),
    "dump/userfaultfd": holding("userfaultfd", HAS_FD + ", a userfaultfd"),
    "dump/pidfd": holding("pidfd", HAS_FD + ", a pidfd of process 1, which is not in the tree"),
    "dump/pidfd-of-a-thread": holding("thread-pidfd", HAS_FD + ", a pidfd of thread [0-9]+, which is not the first of its task"),
    "dump/device": holding("device", HAS_FD + ", the device /dev/"),
    "dump/flock": holding("flock", HAS_FD, "with a lock on it", "--file-locks"),
    "dump/posix-lock": holding("posix-lock", HAS_FD, "with a lock on it", "--file-locks"),
    "dump/lease": holding("lease", HAS_FD, "with a lease on it", options=("--file-locks",)),
    "dump/sysv-shm-outside": holding("sysv-shm", "System V shared memory segment {detail} .key 0x0. is used by the tree and by process {outside} "
                                     "outside of it; ", set_up=segment_from_here),
    "dump/sysv-queue-of-nobody": holding("sysv-queue", "System V message queue {detail} .key 0x0. of user 0 was made, changed or used while the tree ran.*ipcrm -q {detail}"),
    "dump/pipe-to-outside": holding("outside-pipe", "task {pid} has fd {fd}, the write end of a pipe whose read end", set_up=pipe_from_here),
    "dump/seccomp": holding("seccomp", "task {pid} runs under a seccomp filter"),
    "dump/deleted-big-file": holding("deleted-big-file", HAS_FD, "--ghost-limit", options=("--ghost-limit", "1M")),
    "dump/thread-with-own-descriptors": holding("own-thread-files", "task {pid} has a (descriptor table|working folder) of its own"),
    "dump/memory-shared-with-outside": holding("shared-memory-outside", "{outside}", "shares memory", set_up=memfd_from_here),
    "dump/landlock": holding("landlock", "thread {pid} of task {pid} is restricted by landlock"),
    "dump/user-dispatch": holding("user-dispatch", "thread {pid} of task {pid} has its system calls dispatched to itself"),
    "dump/address-space-limit": holding("address-space-limit", "task {pid} has [0-9]+ KiB mapped and a limit of {detail} KiB \\(RLIMIT_AS\\)"),
    "dump/own-net-namespace": holding("plain", "task {pid} is in other namespaces than this command: net; .*nsenter -t {pid} -n migrate", prefix=("unshare", "-n")),
    "dump/own-uts-namespace": holding("plain", "task {pid} is in other namespaces than this command: uts; ", prefix=("unshare", "-u")),
    "dump/shared-ipc-namespace": holding("plain", "task {pid} is in other namespaces than this command: ipc; ",
                                         prefix=("unshare", "-i", "sh", "-c", '(while [ -d "$3" ]; do sleep 0.2; done &) && exec "$@"', "sh")),
    "dump/own-mounts": holding("plain", "task {pid} is in other namespaces than this command: mount .with other mounts.; .*nsenter -t {pid} -m migrate",
                               prefix=("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /mnt && exec "$@"', "sh")),
    "dump/file-of-a-thread": holding("thread-file", HAS_FD + ", /proc/{pid}/task/.* which is of a thread"),
    "dump/limit-above-ours": limit_above_ours,
    "dump/traced": traced,
    "dump/frozen": frozen,
    "dump/session-leader-outside": outside_session,
    "dump/own-ancestor": own_ancestor,
    "dump/no-such-task": no_such_task,
    "dump/zombie": zombie,
    # What a dump would refuse too is refused by its name; else the advice helps.
    "pre-dump/landlock": holding("landlock", "thread {pid} of task {pid} is restricted by landlock", verb="pre-dump"),
    "pre-dump/user-dispatch": holding("user-dispatch", "has its system calls dispatched to itself", verb="pre-dump"),
    "pre-dump/seccomp": holding("seccomp", "task {pid} runs under a seccomp filter", verb="pre-dump"),
    "pre-dump/userfaultfd": holding("userfaultfd", HAS_FD + ", a userfaultfd .*; close it first", verb="pre-dump"),
    "pre-dump/direct-io": holding("direct-io", HAS_FD + ", open for direct I/O.*; dump it without a pre-dump", verb="pre-dump"),
    "restore/pid-taken": pid_taken,
}

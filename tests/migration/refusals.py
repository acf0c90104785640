#!/usr/bin/env python3
"""What cannot be moved is refused by name: the sentence, exit code 2, the program untouched, nothing left behind.

    refusals.py [--build DIR] [--only REGEX] [--list]

dump/..., pre-dump/...: refused by that command. send/...: by `migrate send`, by either side. early/...: what the destination refuses
before anything is touched (early_refusals.py). tls/...: connections that are refused, told on both sides (tls_refusals.py).
check/...: what `migrate check` says (check_cases.py). texts/...: that sentences and documents are true (texts.py)."""
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import types

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import check_cases  # noqa: E402
import early_refusals  # noqa: E402
import texts  # noqa: E402
import tls_refusals  # noqa: E402
from lib import netns, programs, snapshot, suite, tool  # noqa: E402
from lib.process import descendants, exists, kill_all, read, run, spawn, stat_fields, wait_for  # noqa: E402
from lib.suite import Skip, expect  # noqa: E402

LIB = os.path.join(suite.ROOT, "tests", "lib")
PTRACE_SEIZE = 0x4206


class Stubborn(programs.Program):
    """lib/stubborn.py with its one thing."""
    name = "stubborn"
    exact_maps = True

    def __init__(self, folder, kind, *arguments, prefix=(), pass_fds=(), own_session=True):
        self.folder, self.ns, self.kind = folder, None, kind
        os.makedirs(folder)
        with open(os.path.join(folder, "output"), "ab") as out:
            self.process = subprocess.Popen([*prefix, "/usr/bin/python3", os.path.join(LIB, "stubborn.py"), folder, kind,
                                             *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            pass_fds=pass_fds, start_new_session=own_session)
        self.pid = self.inner = self.process.pid
        self.everybody = {self.pid}
        self.detail = None

    def ready(self):
        def there():
            self.alive_or_raise()
            return read(os.path.join(self.folder, "status"))
        word, pid, self.detail = wait_for(there, f"{self.kind} to be set up", 20).split(" ", 2)
        if word == "IMPOSSIBLE":
            raise Skip(self.detail)
        self.pid = self.inner = int(pid)

    def beat(self):
        return read(os.path.join(self.folder, "beat"))

    def check(self):
        seen = self.beat()
        wait_for(lambda: self.beat() != seen, f"process {self.pid} to run on", 10)


class Untouched:
    """Checks that a program is afterwards what it was."""

    def __init__(self, program):
        self.program, self.pid = program, program.pid
        program.check()
        self.facts = snapshot.tree_facts(self.pid)
        self.cgroup = read(f"/proc/{self.pid}/cgroup")
        self.start = stat_fields(self.pid)[19]

    def expect(self):
        expect(exists(self.pid) and stat_fields(self.pid)[19] == self.start, f"process {self.pid} is gone")
        self.program.check()
        expect(read(f"/proc/{self.pid}/cgroup") == self.cgroup, f"process {self.pid} is in another cgroup")
        found = snapshot.differences(self.facts, snapshot.tree_facts(self.pid), (r"SigBlk|SigPnd|ShdPnd",))
        expect(not found, "/proc differs:\n  " + "\n  ".join(found))


def expect_sentence(text, patterns, values):
    for pattern in patterns:
        full = pattern.format(**{k: re.escape(str(v)) for k, v in values.items()})
        expect(re.search(full, text), f"nothing matches {full!r} in: {text.strip()[-600:]}")


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


# send

class Hosts:
    """Two hosts, a receiver, keys; ends everything."""

    def __init__(self, context, folder):
        self.folder, self.receiver, self.program = folder, None, None
        self.tool = tool.Tool(context.binary, folder)
        self.keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination"])
        self.network = netns.Network(f"r{os.getpid()}", {"source": "10.77.3.1/24", "destination": "10.77.3.2/24"})

    def __enter__(self):
        return self

    def start(self, kind, *arguments, **named):
        self.program = Stubborn(os.path.join(self.folder, "program"), kind, *arguments, prefix=self.network.enter("source"), **named)
        self.program.ready()
        return self.program

    def receive(self, *options, env=None, through=()):
        self.receiver = self.tool.receive(self.network, "destination", self.keys, options=options, env=env, prefix=through)

    def send(self, pid, *options, may_notice=True):
        """Gives (exit code, output of the sender, output of the receiver)."""
        command = [self.tool.binary, "send", f"{self.network.address('destination')}:7400", f"pid:{pid}", "--tls-name", "destination",
                   *self.keys.options("source"), "--state-dir", os.path.join(self.folder, "state-source"), *options]
        code, out = run([*command, *(["--parent-may-notice"] if may_notice else [])], log=self.tool.log, timeout=60,
                        prefix=self.network.enter("source"), env=self.tool.environment("source"))
        return code, out, read(os.path.join(self.folder, "receive.log"))

    def refused(self, pid, patterns, values, *options, both=False, exit_code=2, began=False, **named):
        code, out, there = self.send(pid, *options, **named)
        expect(code == exit_code, f"send exited {code}, not {exit_code}: {out.strip()[-600:]}\nreceive said: {there.strip()[-300:]}")
        expect_sentence(out, patterns, values)
        texts.sentence_fits_verb(self.tool.binary, out, "send", "receive")
        if both:
            expect_sentence(there, patterns[-1:], values)
        if exit_code != 2 or began:
            return  # it was touched, or the session had begun: the journals tell how it ended
        for host in ("source", "destination"):
            left = [f for d, _, names in os.walk(os.path.join(self.folder, f"state-{host}")) for f in names if "lock" not in f]
            expect(not left, f"left in the state folder of the {host}: {left}")

    def __exit__(self, *_):
        if self.program:
            self.program.end()
        if self.receiver:
            kill_all(descendants(self.receiver.pid))
            self.receiver.wait(timeout=5)
        self.network.close()


def send_refuses(kind, *patterns, arguments=(), send=(), receive=(), before=None, both=False, exit_code=2, began=False, through=()):
    """`through`: what runs the receiver."""
    def case(context, folder):
        with Hosts(context, folder) as hosts:
            values = before(hosts, folder) if before else {}
            program = hosts.start(kind, *arguments, *values.get("arguments", ()))
            values |= {"pid": program.pid, "detail": program.detail}
            hosts.receive(*receive, *values.get("receive", ()), through=through)
            untouched = Untouched(program)
            hosts.refused(program.pid, patterns, values, *send, both=both, exit_code=exit_code, began=began)
            untouched.expect()
            if exit_code == 2 and not began:  # a session that failed is one: --once has done its duty
                expect(hosts.receiver.poll() is None, "the receiver ended, though nothing was moved")
    return case


def option_refused(option, pattern, *values):
    """Before anything is connected or looked at."""
    def case(context, folder):
        for value in values:
            code, out = run([context.binary, "send", "127.0.0.1:1", f"pid:{os.getpid()}", f"{option}={value}"], timeout=20)
            expect(code == 2, f"send {option}={value} exited {code}, not 2: {out.strip()[-300:]}")
            expect(re.search(pattern.format(value=re.escape(value)), out), f"{option}={value}: {out.strip()[-300:]}")
    return case


def taken_port(hosts, folder):
    hosts.taken = hosts.network.call("destination", lambda: socket.create_server(("0.0.0.0", 7500)))
    return {}


def root_folder(prepare):
    """A destination whose files are below another folder."""
    def before(hosts, folder):
        root = os.path.join(folder, "root")
        os.makedirs(root)
        return {"receive": ("--root", root), **prepare(hosts, folder, root)}
    return before


def empty_root(hosts, folder, root):
    return {}


def silent_destination(context, folder):
    """Somebody listens, and does not answer in time."""
    with Hosts(context, folder) as hosts:
        program = hosts.start("plain")
        untouched = Untouched(program)
        usual = hosts.tool.environment
        hosts.tool.environment = lambda host: {**usual(host), "MIGRATE_TEST_TIMEOUTS": "connect=500"}
        with hosts.network.call("destination", lambda: socket.create_server(("0.0.0.0", 7400))):
            hosts.refused(program.pid, ["time is up while in the TLS handshake with"], {}, exit_code=1)
        untouched.expect()


def no_such_task(context, folder):
    with Hosts(context, folder) as hosts:
        hosts.receive()
        ended = spawn(["true"], log=os.path.join(folder, "ended.log"))
        ended.wait()
        hosts.refused(ended.pid, ["there is no task {pid}"], {"pid": ended.pid})


def moved_already(context, folder):
    """By another command, which tracks its memory meanwhile."""
    with Hosts(context, folder) as hosts:
        program = hosts.start("plain")
        hosts.receive()
        mover = hosts.tool.send(hosts.network, "source", "destination", hosts.keys, program.pid, wait=False,
                                env={"MIGRATE_FAULT": "source-agent.begun:stop-self"})
        try:
            wait_for(lambda: stat_fields(mover.pid)[0] == "T", "the first send to stand", 20)
            hosts.refused(program.pid, ["pid:{pid} is being moved already, by process"], {"pid": program.pid}, began=True)
        finally:
            mover.kill()
            mover.wait()


def own_parent(context, folder):
    with Hosts(context, folder) as hosts:
        hosts.receive()
        hosts.refused(os.getpid(), ["task {pid} is an ancestor of this command"], {"pid": os.getpid()})


def parent_notices(context, folder):
    with Hosts(context, folder) as hosts:
        program = hosts.start("plain")
        hosts.receive()
        untouched = Untouched(program)
        hosts.refused(program.pid, ["task {pid} has the parent", r"pid {parent}", "--parent-may-notice"],
                      {"pid": program.pid, "parent": os.getpid()}, may_notice=False)
        untouched.expect()


def supervised(name, pattern):
    """A parent that starts its child again."""
    def case(context, folder):
        with Hosts(context, folder) as hosts:
            where = os.path.join(folder, "program")
            os.makedirs(where)
            boss = spawn(["/usr/bin/python3", os.path.join(LIB, "supervisor.py"), name, "setsid", "/usr/bin/python3",
                          os.path.join(LIB, "stubborn.py"), where, "plain"], log=os.path.join(folder, "boss.log"),
                         prefix=hosts.network.enter("source"))
            try:
                pid = int(wait_for(lambda: read(os.path.join(where, "status")), "the supervised program", 20).split()[1])
                hosts.receive()
                beat = read(os.path.join(where, "beat"))
                hosts.refused(pid, [pattern], {"pid": pid, "boss": boss.pid}, may_notice=False)
                expect(exists(pid), "the supervised program ended")
                wait_for(lambda: read(os.path.join(where, "beat")) != beat, "the supervised program to run on", 10)
                expect(int(read(os.path.join(where, "status")).split()[1]) == pid, "it was started again")
            finally:
                kill_all(descendants(boss.pid))
                boss.wait(timeout=5)
    return case


def unshared_file(context, folder):
    """A file that the program writes is on a file system which the destination does not see."""
    with Hosts(context, folder) as hosts:
        root = os.path.join(folder, "root")
        os.makedirs(root)
        wrapper = os.path.join(folder, "migrate-elsewhere")
        with open(wrapper, "w") as f:
            f.write(f"#!/bin/sh\nmount --make-rprivate /\nmount -t tmpfs none {folder}/program\n"
                    f": >{folder}/program/beat\n: >{folder}/program/output\nexec {context.binary} \"$@\"\n")
        os.chmod(wrapper, 0o755)
        program = hosts.start("plain")
        hosts.tool.binary = wrapper
        original = hosts.network.enter
        hosts.network.enter = lambda name: [*original(name), *(["unshare", "-m"] if name == "destination" else [])]
        hosts.receive()
        hosts.tool.binary, hosts.network.enter = context.binary, original
        untouched = Untouched(program)
        hosts.refused(program.pid, ["{folder}/program/(beat|output) is written by the program and is not shown to be the same"],
                      {"folder": folder}, both=True)
        untouched.expect()


def other_file(context, folder):
    """A mapped file has another content at the destination."""
    with Hosts(context, folder) as hosts:
        mapped, other = os.path.join(folder, "library"), os.path.join(folder, "library.other")
        for path, byte in ((mapped, b"a"), (other, b"b")):
            with open(path, "wb") as f:
                f.write(byte * 8192)
        wrapper = os.path.join(folder, "migrate-elsewhere")
        with open(wrapper, "w") as f:
            f.write(f"#!/bin/sh\nmount --make-rprivate /\nmount --bind {other} {mapped}\nexec {context.binary} \"$@\"\n")
        os.chmod(wrapper, 0o755)
        program = hosts.start("mapped-file", mapped)
        hosts.tool.binary = wrapper
        original = hosts.network.enter
        hosts.network.enter = lambda name: [*original(name), *(["unshare", "-m"] if name == "destination" else [])]
        hosts.receive()
        hosts.tool.binary, hosts.network.enter = context.binary, original
        untouched = Untouched(program)
        hosts.refused(program.pid, ["{file} has another content at the destination"], {"file": mapped}, both=True)
        untouched.expect()


def limit_above_ours(context, folder):
    """A restore by a command with such a limit could not give the program its own back, and it would be dead."""
    wrapper = os.path.join(folder, "migrate-limited")
    with open(wrapper, "w") as f:
        f.write(f'#!/bin/sh\nulimit -S -l 64 && ulimit -H -l 64 && exec setpriv --bounding-set=-sys_resource {context.binary} "$@"\n')
    os.chmod(wrapper, 0o755)
    limited = types.SimpleNamespace(binary=wrapper)
    holding("plain", "task {pid} has a hard limit \\(number 8\\) above ours")(limited, folder)


HAS_FD = "task {pid} has fd {detail}"
CASES = {
    "dump/tcp-connection": holding("tcp", HAS_FD + ", an established TCP connection to {peer}", "--tcp-close", set_up=accepting),
    "dump/tcp-not-accepted": waiting_connection,
    "dump/netlink": holding("netlink", HAS_FD + ", a netlink socket"),
    "dump/packet-socket": holding("packet", HAS_FD + ", a packet socket"),
    "dump/raw-socket": holding("raw-ip", HAS_FD),
    "dump/unix-socket-to-outside": holding("unix-outside", HAS_FD + ", a Unix socket connected to .*outside of the tree", set_up=unix_listener),
    "dump/descriptors-on-their-way": holding("descriptors-on-their-way", HAS_FD, "SCM_RIGHTS"),
    "dump/inotify": holding("inotify", HAS_FD + ", an inotify instance"),
    "dump/terminal": holding("terminal", "task {pid} has fd [0-9]+, the terminal /dev/"),
    "dump/io_uring": holding("io-uring", HAS_FD + ", an io_uring instance"),
    "dump/userfaultfd": holding("userfaultfd", HAS_FD + ", a userfaultfd"),
    "dump/pidfd": holding("pidfd", HAS_FD + ", a pidfd"),
    "dump/device": holding("device", HAS_FD + ", the device /dev/"),
    "dump/flock": holding("flock", HAS_FD, "with a lock on it", "--file-locks"),
    "dump/posix-lock": holding("posix-lock", HAS_FD, "with a lock on it", "--file-locks"),
    "dump/lease": holding("lease", HAS_FD, "with a lease on it", options=("--file-locks",)),
    "dump/sysv-shm": holding("sysv-shm", "task {pid} has System V shared memory attached: mapping {detail}-"),
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
    "dump/own-ipc-namespace": holding("plain", "task {pid} is in other namespaces than this command: ipc; ", prefix=("unshare", "-i")),
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
    "send/netlink": send_refuses("netlink", HAS_FD + ", a netlink socket"),
    "send/deleted-big-file": send_refuses("deleted-big-file", HAS_FD + ", the deleted file", "no more than 1048576 bytes"),
    "send/landlock": send_refuses("landlock", "thread {pid} of task {pid} is restricted by landlock", began=True),
    "send/lease": send_refuses("lease", HAS_FD, "with a lease on it"),
    # Both hosts of the test see one file, and the source keeps its lock until the tree has moved.
    "send/flock-of-both-hosts": send_refuses("flock", "is locked by the program, and the lock cannot be had", both=True),
    "send/posix-lock-of-both-hosts": send_refuses("posix-lock", "is locked by the program, and the lock cannot be had", both=True),
    "send/unknown-codec": option_refused("--compress", '"{value}" is no compression; write auto, off, lz4', "gzip", "lz4:9", "zstd:0",
                                         "zstd:20", "zstd:fast", "on"),
    "send/nonsense-rate": option_refused("--bandwidth-limit", '"{value}" is no rate; write bytes a second', "fast", "0", "-5M", "12", "200Mbit",
                                         "1e9", "1.5X", "9999T"),
    "send/silent-destination": silent_destination,
    "send/own-ancestor": own_parent,
    "send/no-such-task": no_such_task,
    "send/moved-already": moved_already,
    "send/parent-notices": parent_notices,
    "send/restarting-parent": supervised("watcher", "task {pid} has the parent watcher \\(pid {boss}\\)"),
    "send/supervisord": supervised("supervisord", "task {pid} is supervised by supervisord \\(pid {boss}\\)"),
    "send/runsv": supervised("runsv", "task {pid} is supervised by runsv \\(pid {boss}\\)"),
    "send/port-taken": send_refuses("listener", "TCP port 7500 cannot be used at the destination", arguments=(7500,),
                                    before=taken_port, both=True),
    "send/file-missing": send_refuses("plain", "does not exist at the destination", before=root_folder(empty_root), both=True),
    "send/file-differs": other_file,
    "send/file-not-shared": unshared_file,
    "send/uid-not-allowed": send_refuses("plain", "a task runs as uid 0, which the receiver does not allow",
                                         receive=("--allow-uid", "12345"), both=True),
    "send/gid-not-allowed": send_refuses("plain", "a task is in group 0, which the receiver does not allow",
                                         receive=("--allow-gid", "12345"), both=True),
    "send/favour-of-root": send_refuses("favoured", "task {pid} has nice value -5 and not CAP_SYS_NICE",
                                        receive=("--allow-uid", "65534", "--allow-gid", "65534"), both=True),
    "send/terminal": send_refuses("terminal", "the terminal /dev/.*stays where it is", send=("--shell-job",)),
    "send/capability-denied": send_refuses("plain", "a task has capabilities that the receiver denies",
                                           receive=("--deny-caps", "chown"), both=True),
    **early_refusals.cases(send_refuses, Hosts, Untouched),
    **tls_refusals.CASES,
    **check_cases.CASES,
    **texts.CASES,
}

if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mrefuse-"))

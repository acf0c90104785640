"""What `migrate send` refuses, by either side."""
import contextlib
import ctypes
import fcntl
import os
import re
import signal
import socket

import texts
from lib import netns, tool
from lib.process import descendants, exists, kill_all, read, run, spawn, stat_fields, wait_for
from lib.suite import expect
from refusing import HAS_FD, LIB, Stubborn, Untouched, expect_sentence


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

    @contextlib.contextmanager
    def send_that_stands(self, pid, point):
        """At a fault point of the source's agent; it is killed afterwards."""
        mover = self.tool.send(self.network, "source", "destination", self.keys, pid, wait=False,
                               env={"MIGRATE_FAULT": f"source-agent.{point}:stop-self"})
        try:
            wait_for(lambda: stat_fields(mover.pid)[0] == "T", f"send to stand at {point}", 20)
            yield
        finally:
            mover.kill()
            mover.wait()

    def receive_elsewhere(self, *commands):
        """Among mounts of its own, which these commands make."""
        binary, enter = self.tool.binary, self.network.enter
        wrapper = os.path.join(self.folder, "migrate-elsewhere")
        with open(wrapper, "w") as f:
            f.write("\n".join(["#!/bin/sh", "mount --make-rprivate /", *commands, f'exec {binary} "$@"', ""]))
        os.chmod(wrapper, 0o755)
        self.tool.binary = wrapper
        self.network.enter = lambda name: [*enter(name), *(["unshare", "-m"] if name == "destination" else [])]
        self.receive()
        self.tool.binary, self.network.enter = binary, enter

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
        with hosts.send_that_stands(program.pid, "begun"):
            hosts.refused(program.pid, ["pid:{pid} is being moved already, by process"], {"pid": program.pid}, began=True)


def dumped_while_moved(context, folder):
    """`dump` does not ask whether a tree is being moved; its memory shows it."""
    with Hosts(context, folder) as hosts:
        program = hosts.start("plain")
        hosts.receive()
        with hosts.send_that_stands(program.pid, "round-sent"):
            registered = re.search(r"^VmFlags:.* uw\b", read(f"/proc/{program.pid}/smaps"), re.MULTILINE)
            os.mkdir(os.path.join(folder, "images"))
            code, out = run([context.binary, "dump", "-t", str(program.pid), "-D", os.path.join(folder, "images"), "-R"],
                            prefix=hosts.network.enter("source"))
            # Soft-dirty bits, where the kernel has nothing better, are in nobody's way.
            expect(code == (2 if registered else 0), f"dump exited {code}: {out}")
            if registered:
                expect_sentence(out, ["task {pid} has memory whose writes another process tracks", "wait for that; .*migrate untrack -t {pid}"],
                                {"pid": program.pid})


def without_effect(context, folder):
    """An option that changes nothing says so; two that contradict each other are refused. No other word about what has one."""
    def send(*options):
        code, out = run([context.binary, "send", "127.0.0.1:1", f"pid:{os.getpid()}", "--insecure", "--state-dir", folder, *options])
        expect(code in (1, 2), f"send exited {code}: {out}")
        return set(re.findall(r"(--[a-z-]+) has no effect", out)), out
    rounds = ("--max-downtime", "9", "--max-rounds", "3", "--max-total-time", "9", "--on-no-convergence", "stop")
    for options, idle in (
            ([*rounds, "--mode", "precopy", "--allow-postcopy"], {"--allow-postcopy"}),
            ([*rounds, "--mode", "stop-copy"], set(rounds[::2])),
            ([*rounds, "--mode", "postcopy", "--recover-timeout", "9"], set(rounds[::2])),
            (["--mode", "hybrid", "--recover-timeout", "9", "--max-rounds", "3"], set()),
            (["--mode", "auto", "--recover-timeout", "9"], {"--recover-timeout"}),
            (["--mode", "auto", "--recover-timeout", "9", "--allow-postcopy"], set()),
            (["--on-no-convergence", "postcopy", "--recover-timeout", "9"], set()),
            (["--tls-name", "b", "--key", "x"], {"--tls-name", "--key"})):
        found, out = send(*options)
        expect(found == idle, f"{options}: without effect are said to be {found}: {out}")
    _, out = send("--mode", "auto", "--allow-postcopy", "--on-no-convergence", "cancel")
    expect_sentence(out, ["--allow-postcopy and --on-no-convergence say different things"], {})


def own_parent(context, folder):
    with Hosts(context, folder) as hosts:
        hosts.receive()
        hosts.refused(os.getpid(), ["task {pid} is this process or an ancestor of it"], {"pid": os.getpid()})


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
        program = hosts.start("plain")
        hosts.receive_elsewhere(f"mount -t tmpfs none {folder}/program", f": >{folder}/program/beat", f": >{folder}/program/output")
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
        program = hosts.start("mapped-file", mapped)
        hosts.receive_elsewhere(f"mount --bind {other} {mapped}")
        untouched = Untouched(program)
        hosts.refused(program.pid, ["{file} has another content at the destination"], {"file": mapped}, both=True)
        untouched.expect()


def awaited_lock(kind, lock):
    """Who waits for it would get it when the program gives it up for the move."""
    def case(context, folder):
        with Hosts(context, folder) as hosts:
            program = hosts.start(kind)
            hosts.receive()
            waiter = os.fork()
            if waiter == 0:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                with open(os.path.join(folder, "program", "locked"), "r+") as f:
                    lock(f, fcntl.LOCK_EX)
                os._exit(0)
            try:
                wait_for(lambda: re.search(rf"-> .* {waiter} ", read("/proc/locks")), "another process to wait for the lock", 10)
                untouched = Untouched(program)
                hosts.refused(program.pid, ["process {waiter} waits for the lock of task {pid} on {folder}/program/locked, and would get it"],
                              {"waiter": waiter, "pid": program.pid, "folder": folder})
                untouched.expect()
            finally:
                os.kill(waiter, signal.SIGKILL)
                os.waitpid(waiter, 0)
    return case


CASES = {
    "send/netlink": send_refuses("netlink", HAS_FD + ", a netlink socket of protocol 16"),
    "send/deleted-big-file": send_refuses("deleted-big-file", HAS_FD + ", the deleted file", "raise --ghost-limit"),
    "send/landlock": send_refuses("landlock", "thread {pid} of task {pid} is restricted by landlock", began=True),
    "send/lease": send_refuses("lease", HAS_FD, "with a lease on it"),
    "send/awaited-flock": awaited_lock("flock", fcntl.flock),
    "send/awaited-posix-lock": awaited_lock("posix-lock", fcntl.lockf),
    "send/unknown-codec": option_refused("--compress", '"{value}" is no compression; write auto, off, lz4', "gzip", "lz4:9", "zstd:0",
                                         "zstd:20", "zstd:fast", "on"),
    "send/nonsense-rate": option_refused("--bandwidth-limit", '"{value}" is no rate; write bytes a second', "fast", "0", "-5M", "12", "200Mbit",
                                         "1e9", "1.5X", "9999T"),
    "send/silent-destination": silent_destination,
    "send/own-ancestor": own_parent,
    "send/no-such-task": no_such_task,
    "send/moved-already": moved_already,
    "dump/moved-already": dumped_while_moved,
    "send/without-effect": without_effect,
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
    "send/stopped-terminal": send_refuses("stopped-terminal", "the terminal /dev/ptmx, whose output is stopped"),
    "send/capability-denied": send_refuses("plain", "a task has capabilities that the receiver denies",
                                           receive=("--deny-caps", "chown"), both=True),
}

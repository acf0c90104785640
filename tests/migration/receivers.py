#!/usr/bin/env python3
"""A receiver that one can leave on: strangers that say nothing, speak slowly or flood cost honest peers nothing, several
migrations go at a time, and whoever is trusted is named."""
import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lib import cgroups, suite  # noqa: E402
from lib.process import descendants, find_moved, kill_all, read, run, spawn, stat_fields, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402
import tls_refusals  # noqa: E402
from tls_refusals import PORT, Link  # noqa: E402


class Moves(Link):
    """A link between whose ends programs are moved for good."""

    def __init__(self, context, folder):
        super().__init__(context, folder)
        self.programs = []

    def start_program(self):
        """A program with a command line of its own."""
        word = str(100_000_000 + len(self.programs) + os.getpid() * 1000)
        p = spawn(["sleep", word], log=os.path.join(self.folder, "program.log"))
        self.programs.append((p, word))
        return p, word

    def receive(self, *options, keys=None, env=None, prefix=()):
        link = self.keys.options("destination") if keys is None else keys
        self.receiver = spawn([self.binary, "receive", "--listen", f"127.0.0.1:{PORT}", "--state-dir",
                               os.path.join(self.folder, "state-destination"), *link, *options], log=self.log, env=env, prefix=prefix)
        wait_for(lambda: "listening on" in read(self.log), "migrate receive to listen", 15)

    def command(self, pid, *options, verb="send"):
        target = [f"127.0.0.1:{PORT}", f"pid:{pid}", "--parent-may-notice"] if verb == "send" else []
        return [self.binary, verb, *target, "--tls-name", "destination", "--state-dir", os.path.join(self.folder, "state-source"),
                *self.keys.options("source"), *options]

    def move(self, *options, env=None):
        """Moves a new program; gives (exit code, output, its copy or None)."""
        p, word = self.start_program()
        code, out = run(self.command(p.pid, *options), timeout=60, env=env, log=os.path.join(self.folder, "commands.log"))
        return code, out, find_moved(p.pid, "sleep", word)

    def moves_well(self, *options):
        code, out, copy = self.move(*options)
        expect(code == 0 and copy, f"send exited {code}: {out[-600:]}\nreceive: {read(self.log)[-600:]}")
        # Whoever tidies up must not take the tree's init for a guardian that was left.
        init = read(f"/proc/{stat_fields(copy)[1]}/cmdline")
        expect(init.startswith("migrate: init"), f"the init of the moved tree goes by the name of {init!r}")
        kill_all([copy])

    def __exit__(self, *exception):
        for p, word in self.programs:
            copy = find_moved(p.pid, "sleep", word)
            kill_all([p.pid, *([copy] if copy else [])])
            p.poll()
        super().__exit__(*exception)


def case(function):
    def run_it(context, folder):
        with Moves(context, folder) as link:
            function(link)
    run_it.__name__ = function.__name__
    return run_it


class Strangers:
    """`count` connections that are renewed whenever the receiver ends one; `say` is what each says first."""

    def __init__(self, count, say=b""):
        self.say, self.sockets, self.stop = say, [], threading.Event()
        for _ in range(count):
            self.connect()
        self.thread = threading.Thread(target=self.renew, daemon=True)
        self.thread.start()

    def connect(self):
        s = socket.create_connection(("127.0.0.1", PORT), 20)
        s.setblocking(False)
        with contextlib.suppress(OSError):
            s.send(self.say)
        self.sockets.append(s)

    def renew(self):
        while not self.stop.wait(0.05):
            for s in list(self.sockets):
                try:
                    if s.recv(100) != b"":
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                s.close()
                self.sockets.remove(s)
                with contextlib.suppress(OSError):
                    self.connect()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(10)
        for s in self.sockets:
            s.close()


def beside_strangers(link, count, say=b""):
    """Three honest moves at a time, and a question about a session that is in doubt."""
    link.receive()
    with Strangers(count, say):
        code, out, copy = link.move(env={"MIGRATE_FAULT": "source-agent.commit-sent:kill-self"})
        expect(code == -9, f"the sender that is killed exited {code}: {out[-300:]}")
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for code, out, copy in pool.map(lambda _: link.move(), range(3)):
                expect(code == 0 and copy, f"send exited {code}: {out[-600:]}\nreceive: {read(link.log)[-600:]}")

        def resolved():
            code, out = run(link.command(0, verb="resolve"), timeout=30)
            return code == 0
        wait_for(resolved, "resolve to settle the session in doubt", 30, 0.5)
    link.receiver_says("asked about a session: (GATE_OPEN|DONE)")


def silent_strangers(link):
    beside_strangers(link, 40)


def slow_strangers(link):
    """They begin as TLS, as a page stream's token, as nothing known, and do not go on: nobody spins for them."""
    link.receive()
    with Strangers(8, b"\x16\x03"), Strangers(8, b"MIG"), Strangers(8, b"MIGT1234"), Strangers(8, b"\x16\x03\x01\x02\x00\x01"):
        link.moves_well()
        expect_idle(link.receiver.pid)


def expect_idle(pid):
    """Who spins takes nearly all of each half second, also on a busy machine; who waits takes next to nothing of one."""
    looks = [cpu_seconds(pid)]

    def idle():
        looks.append(cpu_seconds(pid))
        return len(looks) > 2 and looks[-1] - looks[-2] < 0.05
    wait_for(idle, "the receiver to be idle", 10, 0.5)


def cpu_seconds(pid):
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def flood(link):
    """More connections than strangers may have in all."""
    link.receive()
    with Strangers(400):
        link.moves_well()
    link.still_well()


def out_of_descriptors(link):
    """accept(2) fails with EMFILE: it waits, and goes on, and ends when it is told to."""
    link.receive(prefix=["prlimit", "--nofile=40:"])
    with Strangers(100):
        wait_for(lambda: "trying again" in read(link.log), "descriptors to run out", 10)
    link.moves_well()
    link.receiver.terminate()
    expect(link.receiver.wait(timeout=10) == 0, "the receiver's end")


def three_at_a_time(link):
    """Each stays a while behind Begin: a fourth one is told at once that there is no place."""
    link.receive("--max-sessions", "3", env={"MIGRATE_FAULT": "destination-agent.begun:sleep"})
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running = [pool.submit(link.move) for _ in range(3)]
        wait_for(lambda: read(link.log).count("receiving pid:") == 3, "three sessions to begin", 20)
        code, out, _ = link.move()
        expect(code == 2 and "it receives 3 migrations already" in out, f"the fourth send exited {code}: {out[-500:]}")
        expect(not any(r.done() for r in running), "the fourth was not refused while the others were there")
        for code, out, copy in (r.result() for r in running):
            expect(code == 0 and copy, f"send exited {code}: {out[-600:]}")


def foreign_page_stream(link):
    """Tokens that nobody was given, and a stranger that claims to be a page stream while one is awaited."""
    link.receive()
    with Strangers(20, b"MIGT" + bytes(16)):
        link.moves_well()


def silent_peers(link):
    """Authenticated peers that say nothing take no place, and no more processes than they may have."""
    link.receive("--max-sessions", "1")
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(tls_refusals.greeted(link))
        wait_for(lambda: len(descendants(link.receiver.pid)) == 7, "their processes", 10)
        link.moves_well()
    wait_for(lambda: len(descendants(link.receiver.pid)) == 1, "their processes to end", 10)


def others_session_id(link):
    """An accepted peer that begins a session with the id of another's, whose copy waits behind its gate: refused, and the copy
    stays."""
    link.receive()
    p, word = link.start_program()
    sender = spawn(link.command(p.pid), log=os.path.join(link.folder, "send.log"), env={"MIGRATE_FAULT": "source-agent.ready:stop-self"})
    try:
        wait_for(lambda: find_moved(p.pid, "sleep", word) and "is complete behind its gate" in read(link.log), "a copy behind its gate", 30)
        copy = find_moved(p.pid, "sleep", word)
        state = os.path.join(link.folder, "state-destination")
        session = next(f for f in os.listdir(state) if f.endswith(".journal")).split(".")[0]
        with tls_refusals.greeted(link, "stranger") as s:
            s.sendall(tls_refusals.preface() + tls_refusals.hello(tls_refusals.VERSION))
            s.sendall(tls_refusals.frame(14, bytes([14 << 3 | 2, 0])))  # an empty Check
            head = bytes([1 << 3 | 2, 16]) + bytes.fromhex(session) + bytes([2 << 3, 1])
            s.sendall(tls_refusals.frame(16, head + bytes([0x82, 0x01, 2, 2 << 3, 1])))  # Begin with one stream
            told = tls_refusals.drain(s)
        expect(b"was used before" in told, f"the peer was told {told[-300:]!r}")
        expect(find_moved(p.pid, "sleep", word) == copy, f"the copy is gone: {read(link.log)[-500:]}")
        os.kill(sender.pid, signal.SIGCONT)
        expect(sender.wait(timeout=30) == 0, f"the move failed: {read(os.path.join(link.folder, 'send.log'))[-500:]}")
        expect(find_moved(p.pid, "sleep", word) == copy, "it does not run there")
    finally:
        kill_all([sender.pid])


def too_large(link):
    """Before anything is touched, by what the sender says; one that fits goes."""
    link.receive("--max-memory", "1M")
    big = [sys.executable, "-c", "import time\nx = bytearray(8 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('up', flush=True)\n"
           "time.sleep(1000)"]
    log = os.path.join(link.folder, "big.log")
    for command, ready, why in ((big, "up", "MiB in memory, and the receiver takes 976.6 KiB .--max-memory"),
                                (["sh", "-c", "sleep 1000 & echo up; wait"], "up", "has 2 tasks, and the receiver takes 1 .--max-tasks")):
        p = spawn(command, log=log)
        try:
            wait_for(lambda: ready in read(log), "the program", 10)
            code, out = run(link.command(p.pid), timeout=30)
            expect(code == 2 and re.search(why, out), f"send exited {code}: {out[-400:]}")
            expect(p.poll() is None, "the program is gone")
        finally:
            kill_all(descendants(p.pid))
        os.unlink(log)
        kill_all([link.receiver.pid])
        link.receiver.wait(timeout=5)
        link.receive("--max-memory", "100M", "--max-tasks", "1")
    link.moves_well()


def grows_too_large(link):
    """A program that grows over the bound while it is on its way: the copy goes, the program runs on."""
    link.receive("--max-memory", "64M")
    now = os.path.join(link.folder, "now")
    grower = (f"import os, time\nprint('up', flush=True)\nwhile not os.path.exists({now!r}): time.sleep(0.01)\nx = bytearray(200 << 20)\n"
              "for i in range(0, len(x), 4096): x[i] = i >> 12 & 255 or 1\nprint('grown', flush=True)\ntime.sleep(1000)")
    log = os.path.join(link.folder, "grower.log")
    p = spawn([sys.executable, "-c", grower], log=log)
    sender = None
    try:
        wait_for(lambda: "up" in read(log), "the program", 10)
        sender = spawn(link.command(p.pid), log=os.path.join(link.folder, "send.log"),
                       env={"MIGRATE_FAULT": "source-agent.begun:stop-self"})
        wait_for(lambda: stat_fields(sender.pid)[0] == "T", "the sender behind its checks", 20)
        with open(now, "w"):
            pass
        wait_for(lambda: "grown" in read(log), "the program to grow", 10)
        os.kill(sender.pid, signal.SIGCONT)
        code = sender.wait(timeout=60)
        out = read(os.path.join(link.folder, "send.log"))
        expect(code == 1 and "may have 61.0 MiB" in out, f"send exited {code}: {out[-600:]}")
        expect(p.poll() is None, "the program is gone")
    finally:
        kill_all([p.pid, *([sender.pid] if sender else [])])


def sent_on(link):
    """What was received is sent on, without a word about its parent, which is ours."""
    link.receive()
    code, out, copy = link.move()
    expect(code == 0 and copy, f"send exited {code}: {out[-600:]}")
    inner, word = link.programs[-1][0].pid, link.programs[-1][1]
    command = link.command(copy)
    command.remove("--parent-may-notice")
    code, out = run(command, timeout=60, log=os.path.join(link.folder, "commands.log"))
    again = find_moved(inner, "sleep", word)
    expect(code == 0 and again and again != copy, f"sending on exited {code}: {out[-600:]}")


def tells_refusals_once(link):
    """All that is in the way, on both sides, each of it once; without a receiver it is no refusal."""
    link.receive("--allow-uid", "12345", "--deny-caps", "all")
    p, _ = link.start_program()
    code, out = run(link.command(p.pid), timeout=30)
    expect(code == 2 and p.poll() is None, f"send exited {code}: {out[-400:]}")
    for reason in ("runs as uid 0", "is in group 0", "has capabilities that the receiver denies"):
        for side, text in (("send", out), ("receive", read(link.log))):
            expect(text.count(reason) == 1, f"{side} tells {text.count(reason)} times {reason!r}: {text[-600:]}")
    kill_all([link.receiver.pid])
    link.receiver.wait(timeout=5)
    code, out = run(link.command(p.pid), timeout=30)
    expect(code == 1 and "Connection refused" in out, f"send to nobody exited {code}: {out[-400:]}")


def missing_root(link):
    """A folder that no tree could be put under is refused at start; one that is there is taken."""
    for name, why in (("nowhere", "No such file or directory"), ("receive.log", "Not a directory")):
        with open(link.log, "w"):
            pass
        code, out = run([link.binary, "receive", "--listen", f"127.0.0.1:{PORT}", "--state-dir", os.path.join(link.folder, "state-destination"),
                         *link.keys.options("destination"), "--root", os.path.join(link.folder, name)], timeout=20)
        expect(code == 2 and f"--root {link.folder}/{name}: {why}; name a folder" in out, f"receive exited {code}: {out[-300:]}")
        expect("listening" not in out, f"it listened: {out[-300:]}")
    link.receive("--root", "/")


def no_such_cgroup(link):
    """A cgroup that no tree could be put in is refused at start; for one that is a user's, only his programs are taken."""
    def refused(path, why, *options):
        code, out = run([link.binary, "receive", "--listen", f"127.0.0.1:{PORT}", "--state-dir", os.path.join(link.folder, "state-destination"),
                         *link.keys.options("destination"), "--cgroup", path, *options], timeout=20)
        expect(code == 2 and re.search(why, out) and "listening" not in out, f"receive --cgroup {path} exited {code}: {out[-300:]}")
    name = f"/migrate-test-{os.getpid()}"
    refused(name, f"no cgroup hierarchy has {name}; make it")
    refused("", "is not the path of a cgroup")
    refused("programs", "is not the path of a cgroup")
    refused("/a/../b", "is not the path of a cgroup")
    folder = cgroups.top(True) or cgroups.top(False)
    try:
        os.mkdir(folder + name)
        os.chown(folder + name, 12345, 12345)
        refused(name, f"{folder}{name} may be changed by user 12345")
        refused(name, f"{folder}{name} may be changed by user 12345", "--allow-uid", "12345", "--allow-uid", "12346")
        link.receive("--cgroup", name, "--allow-uid", "12345")
        link.receiver_says(f"is put into {folder}{name}")
    finally:
        kill_all([link.receiver.pid] if link.receiver else [])
        os.rmdir(folder + name)


def fails_in_a_cgroup(link):
    """A move that fails leaves nothing in the cgroup that was named for programs; one that does not has the program there."""
    group = cgroups.Cgroup(f"migrate-test-{os.getpid()}", cgroups.top(True) is not None)
    options = ("--cgroup", "/" + os.path.basename(group.folder))
    inside = lambda: group.members() or [e.name for e in os.scandir(group.folder) if e.is_dir()]
    try:
        for fault in ("shells:fail", "finished:fail", "finished:kill-self"):
            link.receive(*options, env={"MIGRATE_FAULT": f"destination-guardian.{fault}"})
            p, _ = link.start_program()
            code, out = run(link.command(p.pid), timeout=60)
            expect(code == 1 and p.poll() is None, f"send exited {code} after {fault}: {out[-400:]}")
            wait_for(lambda: not inside(), f"the cgroup to be empty after {fault}", 20)
            kill_all([link.receiver.pid])
            link.receiver.wait(timeout=5)
        link.receive(*options)
        code, out, copy = link.move()
        expect(code == 0 and copy, f"send exited {code}: {out[-400:]}")
        expect(group.members() == {copy, int(stat_fields(copy)[1])}, f"in the cgroup are {inside()}, not {copy} and its init")
        kill_all([copy])
        wait_for(lambda: not inside(), "the cgroup to be empty", 10)
    finally:
        group.close()


def says_whom_it_takes(link):
    link.receive()
    link.receiver_says("no --accept: every certificate of the CA .*ca.crt is taken")
    kill_all([link.receiver.pid])
    link.receiver.wait(timeout=5)
    os.unlink(link.log)
    link.receive("--accept", "source")
    link.moves_well()
    expect("every certificate" not in read(link.log), "it claims to take everybody")
    kill_all([link.receiver.pid])
    link.receiver.wait(timeout=5)
    os.unlink(link.log)
    link.receive("--insecure", keys=[])
    link.receiver_says("--insecure: taken are connections of user 0 on this machine only")


def insecure_other_user(link):
    """A plain connection of another user is refused, both ways; one of the same user is taken."""
    link.receive("--insecure", keys=[])
    told = run([sys.executable, "-c", "import encodings.idna,os,socket\nos.setuid(65534)\n"
                f"s=socket.create_connection(('127.0.0.1',{PORT}))\ns.sendall(b'MIGW'+bytes(4))\ns.settimeout(10)\nprint(s.recv(100))"])
    link.receiver_says("is user 65534's, not user 0's")
    expect("MIGW" not in told[1], f"the stranger was greeted: {told}")
    p, word = link.start_program()
    command = [link.binary, "send", f"127.0.0.1:{PORT}", f"pid:{p.pid}", "--parent-may-notice", "--insecure", "--state-dir",
               os.path.join(link.folder, "state-source")]
    code, out = run(command, timeout=60)
    expect(code == 0, f"an honest plain send exited {code}: {out[-500:]}\nreceive: {read(link.log)[-300:]}")
    copy = find_moved(p.pid, "sleep", word)
    expect(copy, "no copy")
    kill_all([copy, link.receiver.pid])
    link.receiver.wait(timeout=5)
    server = ("import encodings.idna,os,socket\nos.setuid(65534)\n"
              f"s=socket.create_server(('127.0.0.1',{PORT}))\nprint('up',flush=True)\n"
              "c=s.accept()[0]\nc.sendall(b'MIGW'+bytes(4))\nprint(len(c.recv(8)),c.recv(100))")
    log = os.path.join(link.folder, "server.log")
    fake = spawn([sys.executable, "-c", server], log=log)
    try:
        wait_for(lambda: "up" in read(log), "the false receiver", 10)
        code, out = run([link.binary, "send", f"127.0.0.1:{PORT}", f"pid:{link.program.pid}", "--parent-may-notice", "--insecure",
                         "--state-dir", os.path.join(link.folder, "state-source")], timeout=60)
        expect(code == 2 and "is user 65534's, not user 0's" in out, f"send exited {code}: {out[-500:]}")
        fake.wait(timeout=10)
        expect("b''" in read(log), f"the false receiver was told something: {read(log)}")
    finally:
        kill_all([fake.pid])
    expect(link.program.poll() is None, "the program is gone")


def nothing_to_print_to(link):
    """Neither side has standard descriptors: nothing of ours gets their numbers."""
    closed = [sys.executable, "-c", "import os,sys\nos.closerange(0,3)\nos.execv(sys.argv[1],sys.argv[1:])"]
    state = os.path.join(link.folder, "state-destination")
    link.receiver = spawn([link.binary, "receive", "--listen", f"127.0.0.1:{PORT}", "--state-dir", state, *link.keys.options("destination")],
                          log=link.log, prefix=closed)
    needle = f":{PORT:04X} "
    wait_for(lambda: any(needle in line and " 0A " in line for line in read("/proc/net/tcp").splitlines()), "migrate receive to listen", 15)
    p, word = link.start_program()
    code, out = run(link.command(p.pid), prefix=closed, timeout=60)
    copy = find_moved(p.pid, "sleep", word)
    expect(code == 0 and out == "" and copy, f"send exited {code}: {out[-600:]}")
    kill_all([copy])


def no_more_in_a_file(link):
    """RLIMIT_FSIZE at the source is a full disk, not a death that leaves a probe behind."""
    link.receive()
    written = os.path.join(link.folder, "written")
    os.mkdir(written)
    p = spawn(["sleep", "1000"], log=os.path.join(written, "log"))
    try:
        for size in (0, 4096):
            code, out = run(link.command(p.pid), prefix=["prlimit", f"--fsize={size}:{size}"], timeout=60)
            expect(code in (1, 2) and "send: " in out, f"send exited {code}: {out[-600:]}")
            expect(os.listdir(written) == ["log"], f"left behind: {os.listdir(written)}")
            expect(p.poll() is None, "the program is gone")
    finally:
        kill_all([p.pid])


def readers_go(link):
    """Whoever collects what send says need not wait for the watch, which tells the other host for a day."""
    link.receive(env={"MIGRATE_FAULT": "destination-agent.begun:stop-self"})
    p, _ = link.start_program()
    sender = subprocess.Popen(link.command(p.pid), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    watch = None
    try:
        wait_for(lambda: "receiving pid:" in read(link.log), "the session to begin", 20)
        watch = next(q for q in map(int, filter(str.isdigit, os.listdir("/proc")))
                     if read(f"/proc/{q}/cmdline").startswith(f"migrate\0guardian-watch\0source\0{link.folder}/"))
        kill_all(descendants(link.receiver.pid))
        link.receiver.wait(timeout=5)
        sender.communicate(timeout=20)
        expect(os.path.exists(f"/proc/{watch}"), "the watch has ended: it proves nothing")
        expect(p.poll() is None, "the program is gone")
    finally:
        kill_all([sender.pid, *([watch] if watch else [])])


def source_gives_up(link):
    """Whoever ends `send` while pages are on their way cuts their streams; the receiver says why, not that they were cut."""
    link.receive()
    program = spawn([sys.executable, "-c", "import os, signal; b = os.urandom(64 << 20); print(1, flush=True); signal.pause()"],
                    log=os.path.join(link.folder, "large.log"))
    try:
        wait_for(lambda: read(os.path.join(link.folder, "large.log")) == "1\n", "the program to have memory", 20)
        log = os.path.join(link.folder, "send.log")
        send = spawn(link.command(program.pid, "--mode", "stop-copy", "--bandwidth-limit", "4M"), log=log)
        wait_for(lambda: "to be sent" in read(log), "the program to be frozen", 20)
        send.send_signal(signal.SIGINT)
        wait_for(lambda: send.poll() is not None, "send to end", 20)
        expect(send.returncode == 1 and "interrupted" in read(log), f"send exited {send.returncode}: {read(log)[-400:]}")
        wait_for(lambda: "the source gave up: interrupted" in read(link.log), "the receiver to say why", 10)
        expect("without a word" not in read(link.log), f"it says {read(link.log)[-400:]}")
        expect(program.poll() is None, "the program is dead")
    finally:
        program.kill()
        program.wait()


def stands_too_long(link):
    """The destination hangs while the program stands still: it runs on here when that was too long."""
    link.receive(env={"MIGRATE_FAULT": "destination-guardian.shells:stop-self"})
    p, _ = link.start_program()
    for mode in ("precopy", "stop-copy", "postcopy"):
        code, out = run(link.command(p.pid, "--mode", mode, "--abort-downtime", "1"), timeout=40, env={"MIGRATE_TEST_TIMEOUTS": "settle=500"})
        expect(code == 1 and re.search(r"stood still for 1 s.*--abort-downtime\); .* runs on here", out), f"send exited {code}: {out[-600:]}")
        expect(p.poll() is None and stat_fields(p.pid)[0] == "S", f"the program is {stat_fields(p.pid)}")


CASES = {f"receiver/{f.__name__.replace('_', '-')}": case(f) for f in (
    silent_strangers, slow_strangers, flood, out_of_descriptors, three_at_a_time, foreign_page_stream, silent_peers, others_session_id, too_large, grows_too_large, sent_on,
    missing_root, no_such_cgroup, fails_in_a_cgroup, tells_refusals_once, says_whom_it_takes, insecure_other_user, nothing_to_print_to, no_more_in_a_file, readers_go, source_gives_up, stands_too_long)}

if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mreceive-"))

"""What is moved, and how: the rows and columns of the migration tests."""
import contextlib
import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import small  # noqa: E402
from lib import lazy as lazy_verbs, netns, programs, services, remains, snapshot, tool  # noqa: E402
from lib.process import exists, find_moved, kill_tree, wait_for  # noqa: E402
from lib.suite import Skip  # noqa: E402

# name: (program, arguments)
WORKLOADS = {
    "threads": ("threads", ["256"]), "registers": ("registers", []), "signals": ("signals", []), "timers": ("timers", []),
    "sleep_restart": ("sleep_restart", []), "creds": ("creds", []), "mm": ("mm", []), "tree": ("tree", []),
    "pipes": ("pipes", []), "files": ("files", []), "events": ("events", []), "unixsock": ("unixsock", []),
    "tcp": ("tcp", []), "udp": ("udp", []), "identity": ("identity", []), "clocks": ("clocks", []), "itimer": ("itimer", []),
    "sequence": ("sequence", []), "many_vmas": ("many_vmas", ["5000"]), "many_fds": ("many_fds", ["5000"]),
    "memory": ("memory", ["256"]), "shared": ("shared", ["32", "3000"]), "locks": ("locks", []), "novdso": ("novdso", []),
    "main_waits": ("main_waits", []), "sections": ("sections", []), "peercred": ("peercred", []), "beyond": ("beyond", []),
    "attributes": ("attributes", []),
    "tcp_inside": ("tcp_inside", []),
    "socket_options": ("socket_options", []),
    "unix_queues": ("unix_queues", []),
    "unix_waiting": ("unix_waiting", []),
    "multicast": ("multicast", []),
    "renamed_sockets": ("renamed_sockets", []),
    "shut_down": ("shut_down", []),
    "many_timers": ("many_timers", []),
    "timers_of_200": ("many_timers", ["200", "2"]),
    "timer_signals": ("timer_signals", []),
    "pidfds": ("pidfds", []),
    "watches": ("watches", []),
    "epoll_elsewhere": ("epoll_elsewhere", []),
    "pipe_facts": ("pipe_facts", []),
    "lost_paths": ("lost_paths", []),
    "sealed": ("sealed", []),
    "stopped": ("stopped", []),
    "sysv_shm": ("sysv_shm", []),
    "sysv_sem": ("sysv_sem", []),
    "sysv_msg": ("sysv_msg", []),
    "pty_modes": ("pty_modes", []),
    "pty_session": ("pty_session", []),
    "pty_queue": ("pty_queue", []),
    "segments": ("segments", []),
}
# Options of `dump` and `restore` that a program needs.
OPTIONS = dict.fromkeys(("locks", "mariadb", "mariadb-written", "etcd", "cron"), ("--file-locks",))
# `restore` gives terminals their numbers on the host's /dev/pts, which the frozen tree of the source has in use: it is one for both.
# A dump does not hand over locks.
NOT_LAZY_REMOTE = ("locks", "pty_modes", "pty_session", "pty_queue", "tmux")
PROGRAMS = {"redis": programs.Redis, "nginx": programs.Nginx, "python": programs.Python, "pipeline": programs.Pipeline,
            "inotifywait": programs.Inotifywait, "postgres": programs.Postgres, "tmux": programs.Tmux,
            "haproxy": services.Haproxy, "rsyslog": services.Rsyslog, "named-pool": services.NamedPool, "java": services.Java,
            "logs": services.Logs, "mariadb": services.MariaDb, "etcd": services.Etcd, "cron": services.Cron,
            "sshd": services.Sshd, "nginx-replaced": programs.NginxReplaced, "mariadb-written": services.MariaDbWritten,
            "postgres-bench": services.PostgresBench}
# Both hosts of the test see the same files.
WITH_SERVICES = ("live", "live-postcopy")
# Moved in these modes only: for their locks on files, which are no matter where one host dumps and restores them; for their size; and those
# of which the others have each part.
IN_FEW = {**dict.fromkeys(("mariadb", "mariadb-written", "postgres-bench", "etcd", "cron", "sshd", "nginx-replaced"), WITH_SERVICES), "timers_of_200": ("live",)}
NEEDS = {"redis": "redis-server", "nginx": "nginx", "python": "/usr/bin/python3", "inotifywait": "inotifywait",
         "postgres": "/usr/lib/postgresql/15/bin/postgres", "tmux": "tmux", "haproxy": "haproxy", "rsyslog": "rsyslogd",
         "named-pool": "/usr/bin/python3", "java": "java", "logs": "/usr/bin/python3",
         "mariadb": "mariadbd", "etcd": "etcd", "cron": "cron", "sshd": "sshd", "nginx-replaced": "nginx", "mariadb-written": "mariadbd",
         "postgres-bench": "/usr/lib/postgresql/15/bin/postgres"}
# Lazily moved with TLS; they have more private memory than this, which a lazy dump leaves out of the folder.
LAZY_TLS = ("memory", "redis")
LAZY_MOST = 2 << 20
MODES = ("inplace", "lazy", "lazy-remote", "leave-running", "live", "live-stop", "live-postcopy", "live-hybrid", "live-back", "cancelled")
# Those in which small workloads are moved, in bundles.
SMALL_MODES = ("inplace", "leave-running", "live", "live-stop", "live-postcopy", "live-hybrid", "cancelled")
BETWEEN_HOSTS = ("live", "live-stop", "live-postcopy", "live-hybrid", "lazy-remote", "cancelled")
# Moved to a host whose clocks are ahead, too; their last time-out ends this many seconds after their start.
TIMED = {"clocks": 0, "itimer": 0, "timers": 4, "sleep_restart": 5, "events": 4, "main_waits": 5,
         "many_timers": 1, "timer_signals": 0}
# Those of the others whose moves are cancelled, too: who may be disturbed by it.
CANCELLED = ("signals", "timers", "sleep_restart", "pipes", "events", "unixsock", "tcp", "udp", "shared", "redis", "locks")


def names(mode):
    """What is moved in that mode, but for small workloads."""
    if mode == "live-back":
        return list(TIMED)
    if mode == "cancelled":
        return list(CANCELLED)
    left_out = {*(NOT_LAZY_REMOTE if mode == "lazy-remote" else ()), *(n for n, modes in IN_FEW.items() if mode not in modes)}
    return [n for n in (*WORKLOADS, *PROGRAMS) if n not in left_out]


class Context:
    """What a case needs to know about the run."""

    def __init__(self, binary, workloads, top, send_args=(), receive_args=(), shared=False):
        self.binary, self.workloads, self.top = binary, workloads, top
        self.send_args, self.receive_args = send_args, receive_args
        self.shared = shared  # others run at the same time: only what is known to be a case's own can be looked for
        self.small = small.Catalogue(workloads)
        self.program = None  # what was started last


def start(context, name, folder, prefix=(), ns=None):
    context.program = program = made(context, name, folder, prefix, ns)
    more = OPTIONS.get(name, ()) if isinstance(name, str) and "." not in name else small.options([name] if isinstance(name, str) else name)
    program.dump_options = (*program.dump_options, *more)
    return program


def made(context, name, folder, prefix, ns):
    """`name`: also a list of small workloads, which are started together."""
    if isinstance(name, list):
        return programs.Bundle(name[0] if len(name) == 1 else "bundle", context.small.binary, name, folder, prefix, ns)
    if context.small and name in context.small.names:
        return programs.Bundle(name, context.small.binary, [name], folder, prefix, ns)
    if name in PROGRAMS:
        needed = NEEDS.get(name)
        if needed and not shutil.which(needed):
            raise Skip(f"{needed} is not installed ({'install default-jre-headless' if name == 'java' else 'scripts/install-deps installs it'})")
        return PROGRAMS[name](folder, prefix, ns)
    file, arguments = WORKLOADS[name]
    binary = os.path.join(context.workloads, file)
    if not os.access(binary, os.X_OK):
        raise Skip(f"{binary} is not built (scripts/build)")
    return programs.Workload(name, binary, arguments, folder, prefix, ns)


class Refused(tool.Failed):
    """Nothing was touched."""


def facts(program):
    program.settle()
    return snapshot.tree_facts(program.pid, program.exact_maps)


def compare(program, before, what, ignore=()):
    after = facts(program)
    if program.churn:
        before, after = ({p: f for p, f in of.items() if p in before and p in after} for of in (before, after))
    found = snapshot.differences(before, after, (*program.ignore, *ignore))
    traced = [f"task {pid} has tracer {f['tracer']}" for pid, f in after.items() if f.get("tracer", "0") != "0"]
    if found or traced:
        raise programs.Unwell(f"{what}: /proc differs:\n  " + "\n  ".join(found + traced))


def in_place(context, name, folder, lazy=False):
    """Killed by the dump, restored, three times in a row."""
    t = tool.Tool(context.binary, folder)
    program = start(context, name, os.path.join(folder, "program"))
    try:
        program.ready()
        program.check()
        before = facts(program)
        program.remember()
        for n in (1, 2, 3):
            images = os.path.join(folder, f"images-{n}")
            program.settle()
            old = program.pid
            t.dump(old, images, *program.dump_options)
            program.reap_old()
            wait_for(lambda: not exists(program.pid), "the dumped tree to be gone", 10)
            daemon = t.lazy_pages(images) if lazy else None
            pid = t.restore(images, *program.dump_options, *(("--lazy-pages",) if lazy else ()))
            program.moved_to(pid, None)
            if pid != old:
                raise programs.Unwell(f"round {n}: pid {old} came back as {pid}")
            try:
                program.check()
                if daemon is not None:
                    t.end_lazy_pages(daemon, images)
                compare(program, before, f"round {n}")
            except Exception:
                keep_log(images)
                raise
            shutil.rmtree(images)
    finally:
        program.end()


def lazy(context, name, folder):
    """The same, with what pages may come later."""
    in_place(context, name, folder, True)


def lazy_remote(context, name, folder):
    """Between two hosts, by dump --lazy-pages, lazy-pages --page-server and restore --lazy-pages; one program with TLS."""
    short = f"z{os.getpid()}"
    program = move = None
    network = netns.Network(short, {"source": "10.79.1.1/24", "destination": "10.79.1.2/24"})
    try:
        address = network.address("source")
        sides = {host: ["--insecure"] for host in network.hosts}
        if name in LAZY_TLS:
            keys = tool.Keys(context.binary, os.path.join(folder, "keys"), [network.address(h) for h in network.hosts])
            sides = {host: lazy_verbs.tls_options(keys, network.address(host)) for host in network.hosts}
        program = start(context, name, os.path.join(folder, "program"), network.enter("source"), f"{short}-source")
        program.ready()
        program.check()
        before = facts(program)
        program.remember()
        move = lazy_verbs.Move(context.binary, os.path.join(folder, "images-1"), program.pid, program.inner, program.comm(), address,
                               source=network.enter("source"), destination=network.enter("destination"),
                               source_options=[*sides["source"], *program.dump_options], destination_options=sides["destination"])
        move.dump()
        stored = sum(os.path.getsize(os.path.join(move.here, f)) for f in os.listdir(move.here) if f.startswith("pages-"))
        if stored > LAZY_MOST and name in LAZY_TLS:
            raise programs.Unwell(f"{stored} bytes of pages that could come later are in the folder")
        move.copy()
        move.lazy_pages()
        pid = move.expect_restored(*program.dump_options)
        program.moved_to(pid, f"{short}-destination")
        program.check()
        move.expect_done()
        program.reap_old(move.namespace.pid)
        compare(program, before, "after the move", program.ignore_live)
        program.check()
    finally:
        if program is not None:
            program.end()
        if move is not None:
            move.close()
        network.close()


def keep_log(images):
    """Images can be large; their logs are what one reads."""
    for file in os.listdir(images):
        if file.startswith("pages-"):
            os.unlink(os.path.join(images, file))


def leave_running(context, name, folder):
    """Dumped twice, running on. (images.py looks at what is in the images.)"""
    t = tool.Tool(context.binary, folder)
    program = start(context, name, os.path.join(folder, "program"))
    try:
        program.ready()
        program.check()
        before = facts(program)
        for n in (1, 2):
            images = os.path.join(folder, f"images-{n}")
            program.settle()
            t.dump(program.pid, images, "-R", *program.dump_options)
            program.alive_or_raise()
            program.check()
            compare(program, before, f"after dump {n}")
            shutil.rmtree(images)
    finally:
        program.end()


class Move:
    """Two hosts, the program on the source, a receiver on the destination. `environment`: of the sender."""

    def __init__(self, context, name, folder, source_clocks, destination_clocks, environment=None):
        self.name, self.folder, self.environment = name, folder, environment
        short = f"m{os.getpid()}"
        self.inside = f"{short}-destination"
        self.program = self.receiver = None
        self.network = netns.Network(short, {"source": "10.77.1.1/24", "destination": "10.77.1.2/24"})
        try:
            self.tool = tool.Tool(context.binary, folder, context.send_args, context.receive_args)
            self.keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination"])
            self.program = start(context, name, os.path.join(folder, "program"), [*self.network.enter("source"), *source_clocks],
                                 f"{short}-source")
            self.started = time.monotonic()
            self.program.ready()
            self.program.check()
            self.before = facts(self.program)
            self.program.remember()
            self.receiver = self.tool.receive(self.network, "destination", self.keys, prefix=destination_clocks)
        except BaseException:
            self.close()
            raise

    def send(self, options):
        """Gives (exit code, events, output)."""
        return self.tool.send(self.network, "source", "destination", self.keys, self.program.pid, options=options, env=self.environment)

    def heard(self):
        return tool.tail(self.folder + "/receive.log")

    def end_receiver(self, code=0):
        if wait_for(lambda: self.receiver.poll() is not None, "migrate receive --once to end", 15) and self.receiver.returncode != code:
            raise tool.Failed(f"receive exited {self.receiver.returncode}:\n{self.heard()}")

    def close(self):
        if self.program is not None:
            self.program.end()
        if self.receiver is not None and self.receiver.poll() is None:
            kill_tree(self.receiver.pid)
            self.receiver.wait(timeout=5)
        self.network.close()


def live(context, name, folder, source_clocks=netns.OTHER_CLOCKS, destination_clocks=(), options=()):
    """Sent between two hosts, by pre-copy; the source's clocks are 100,000 s ahead."""
    with contextlib.closing(Move(context, name, folder, source_clocks, destination_clocks)) as move:
        program = move.program
        comm = program.comm()
        code, _, out = move.send(options)
        if code != 0:
            kind = tool.Failed
            if code == 2 and '"touched":false' in out:
                kind = Refused
                program.check()
                compare(program, move.before, "after it was refused")
            raise kind(f"send exited {code}:\n{out.strip()[-1500:]}\nreceive said:\n{move.heard()}")
        program.reap_old(move.receiver.pid)
        pid = wait_for(lambda: find_moved(program.inner, comm), "the tree at the destination", 10)
        program.moved_to(pid, move.inside)
        program.check()
        compare(program, move.before, "after the move", program.ignore_live)
        if isinstance(name, str) and name in TIMED:
            # Time-outs that were running while it moved must end now, not 100,000 s later.
            time.sleep(max(0.0, move.started + TIMED[name] - time.monotonic()))
            program.check()
        move.end_receiver()


def cancelled(context, name, folder):
    """Given up by the source when all of it is ready at the destination: nobody can tell that it was frozen."""
    with contextlib.closing(Move(context, name, folder, (), (), {"MIGRATE_FAULT": "source-agent.ready:fail"})) as move:
        code, _, out = move.send(())
        if code != 1 or "reach source-agent.ready" not in out:
            raise tool.Failed(f"send exited {code} and should have failed:\n{out.strip()[-1500:]}\nreceive said:\n{move.heard()}")
        move.program.alive_or_raise()
        move.program.check()
        compare(move.program, move.before, "after the cancelled move", move.program.ignore_live)
        move.program.check()
        move.end_receiver(1)


def live_back(context, name, folder):
    """As `live`, with the destination's clocks ahead."""
    live(context, name, folder, (), netns.OTHER_CLOCKS)


def live_stop(context, name, folder):
    """The same, stopped while it is copied."""
    live(context, name, folder, options=("--mode", "stop-copy"))


def live_postcopy(context, name, folder):
    """Its memory comes while it runs at the destination already."""
    live(context, name, folder, options=("--mode", "postcopy"))


def live_hybrid(context, name, folder):
    """The same, for what was written since the last round."""
    live(context, name, folder, options=("--mode", "hybrid"))


RUN = {"inplace": in_place, "lazy": lazy, "lazy-remote": lazy_remote, "leave-running": leave_running, "live": live,
       "live-stop": live_stop, "live-postcopy": live_postcopy, "live-hybrid": live_hybrid, "live-back": live_back,
       "cancelled": cancelled}


def run_case(context, mode, name, folder):
    """Runs one case; raises what went wrong."""
    os.makedirs(folder)
    os.chmod(folder, 0o755)
    before = remains.snapshot()
    RUN[mode](context, name, folder)
    if context.shared:
        remains.wait_for_none(folder, ())
        return
    try:
        wait_for(lambda: not remains.new_since(before, (context.top,)), "clean-up", 8, 0.1)
    except Exception:
        raise programs.Unwell("left behind: " + "; ".join(remains.new_since(before, (context.top,)))) from None


def run_bundle(context, mode, names, folder, expected, most=10):
    """Moves small workloads together. Gives {name: what is wrong, "" if nothing, or a Skip}. Who is to blame when it fails is
    taken out, or found by halves, and the others are moved again, `most` times."""
    verdicts, todo = {}, [names]
    for attempt in range(most):
        if not todo:
            break
        some, here = todo.pop(), f"{folder}-{attempt}"
        context.program = None
        try:
            run_case(context, mode, some, here)
            wrong, text = {}, ""
        except programs.Members as e:
            wrong, text = e.wrong, str(e)
        except expected as e:
            text = str(e)
            wrong = {n: text[:600] for n in blamed(context.program, text)}
        skipped = getattr(context.program, "skipped", {})
        verdicts |= {n: Skip(why) for n, why in skipped.items()} | wrong
        rest = [n for n in some if n not in verdicts]
        if not text:
            shutil.rmtree(here, ignore_errors=True)
            verdicts |= dict.fromkeys(rest, "")
        elif wrong:
            todo += [rest] if rest else []
        elif len(rest) < 2:
            verdicts |= dict.fromkeys(rest, text[:600])
        else:
            todo += [rest[:len(rest) // 2], rest[len(rest) // 2:]]
    return verdicts | {n: f"not moved: {most} attempts were in vain" for n in names if n not in verdicts}


def blamed(program, text):
    """The workloads whose processes the first sentences of a failure name."""
    owners = getattr(program, "owners", {})
    lines = text.splitlines()
    told = [line for line in lines[1:] if "differs" in lines[0] or '"refused"' in line or '"failed"' in line]
    pids = [int(n) for line in lines[:1] + told for n in re.findall(r"\b(?:task|process|pid|thread) (\d+)", line)]
    return {owners[p] for p in pids if p in owners}

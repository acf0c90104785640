"""What is moved, and how: the rows and columns of the migration tests."""
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib import lazy as lazy_verbs, netns, programs, remains, snapshot, tool  # noqa: E402
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
    "attributes": ("attributes", []), "many_timers": ("many_timers", []), "timer_signals": ("timer_signals", []),
    "stopped": ("stopped", []), "segments": ("segments", []),
}
# Options of `dump` and `restore` that a program needs.
OPTIONS = {"locks": ("--file-locks",)}
# The source keeps its locks until the tree has moved (refusals.py has that).
NOT_LIVE = ("locks",)
PROGRAMS = {"redis": programs.Redis, "nginx": programs.Nginx, "python": programs.Python, "pipeline": programs.Pipeline}
NEEDS = {"redis": "redis-server", "nginx": "nginx", "python": "/usr/bin/python3"}
# Lazily moved with TLS; they have more private memory than this, which a lazy dump leaves out of the folder.
LAZY_TLS = ("memory", "redis")
LAZY_MOST = 2 << 20
MODES = ("inplace", "lazy", "lazy-remote", "leave-running", "live", "live-stop", "live-postcopy", "live-hybrid", "live-back")
# Both hosts of the test see the same files.
BETWEEN_HOSTS = ("live", "live-stop", "live-postcopy", "live-hybrid", "lazy-remote")
# Moved to a host whose clocks are ahead, too; their last time-out ends this many seconds after their start.
TIMED = {"clocks": 0, "itimer": 0, "timers": 4, "sleep_restart": 5, "events": 4, "main_waits": 5,
         "many_timers": 1, "timer_signals": 0}


def names(mode):
    """What is moved in that mode."""
    if mode == "live-back":
        return list(TIMED)
    return [n for n in (*WORKLOADS, *PROGRAMS) if mode not in BETWEEN_HOSTS or n not in NOT_LIVE]


class Context:
    """What a case needs to know about the run."""

    def __init__(self, binary, workloads, top, send_args=(), receive_args=(), shared=False):
        self.binary, self.workloads, self.top = binary, workloads, top
        self.send_args, self.receive_args = send_args, receive_args
        self.shared = shared  # others run at the same time: what is left behind cannot be told apart


def start(context, name, folder, prefix=(), ns=None):
    if name in PROGRAMS:
        needed = NEEDS.get(name)
        if needed and not shutil.which(needed):
            raise Skip(f"{needed} is not installed (scripts/install-deps installs it)")
        program = PROGRAMS[name](folder, prefix, ns)
    else:
        file, arguments = WORKLOADS[name]
        binary = os.path.join(context.workloads, file)
        if not os.access(binary, os.X_OK):
            raise Skip(f"{binary} is not built (scripts/build)")
        program = programs.Workload(name, binary, arguments, folder, prefix, ns)
    program.dump_options = (*program.dump_options, *OPTIONS.get(name, ()))
    return program


def facts(program):
    program.settle()
    return snapshot.tree_facts(program.pid, program.exact_maps)


def compare(program, before, what, ignore=()):
    after = facts(program)
    found = snapshot.differences(before, after, (*program.ignore, *ignore))
    if program.churn:
        found = [d for d in found if not d.endswith((" is missing", " is new"))]
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


def live(context, name, folder, source_clocks=netns.OTHER_CLOCKS, destination_clocks=(), options=()):
    """Sent between two hosts, by pre-copy; the source's clocks are 100,000 s ahead."""
    short = f"m{os.getpid()}"
    program = receiver = None
    network = netns.Network(short, {"source": "10.77.1.1/24", "destination": "10.77.1.2/24"})
    try:
        t = tool.Tool(context.binary, folder, context.send_args, context.receive_args)
        keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination"])
        program = start(context, name, os.path.join(folder, "program"), [*network.enter("source"), *source_clocks], f"{short}-source")
        started = time.monotonic()
        program.ready()
        program.check()
        before = facts(program)
        program.remember()
        receiver = t.receive(network, "destination", keys, prefix=destination_clocks)
        old, comm = program.pid, program.comm()
        code, seen, out = t.send(network, "source", "destination", keys, old, options=options)
        if code != 0:
            raise tool.Failed(f"send exited {code}:\n{out.strip()[-1500:]}\nreceive said:\n{tool.tail(folder + '/receive.log')}")
        program.reap_old(receiver.pid)
        pid = wait_for(lambda: find_moved(program.inner, comm), "the tree at the destination", 10)
        program.moved_to(pid, f"{short}-destination")
        program.check()
        compare(program, before, "after the move", program.ignore_live)
        if name in TIMED:
            # Time-outs that were running while it moved must end now, not 100,000 s later.
            time.sleep(max(0.0, started + TIMED[name] - time.monotonic()))
            program.check()
        if wait_for(lambda: receiver.poll() is not None, "migrate receive --once to end", 15) and receiver.returncode != 0:
            raise tool.Failed(f"receive exited {receiver.returncode}:\n{tool.tail(folder + '/receive.log')}")
    finally:
        if program is not None:
            program.end()
        if receiver is not None and receiver.poll() is None:
            kill_tree(receiver.pid)
            receiver.wait(timeout=5)
        network.close()


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
       "live-stop": live_stop, "live-postcopy": live_postcopy, "live-hybrid": live_hybrid, "live-back": live_back}


def run_case(context, mode, name, folder):
    """Runs one case; raises what went wrong."""
    os.makedirs(folder)
    os.chmod(folder, 0o755)
    before = remains.snapshot()
    RUN[mode](context, name, folder)
    if context.shared:
        return
    try:
        wait_for(lambda: not remains.new_since(before, (context.top,)), "clean-up", 8, 0.1)
    except Exception:
        raise programs.Unwell("left behind: " + "; ".join(remains.new_since(before, (context.top,)))) from None

"""One broken migration: two hosts, a program that counts, a fault, and what must be true afterwards."""
import os
import signal
import subprocess
import time
import uuid

from lib import netns, programs, remains, snapshot, tool
from lib.process import Deadline, all_pids, descendants, exists, find_moved, kill_all, kill_tree, read, run, stat_fields, wait_for

EXPECTED = (tool.Failed, Deadline, programs.Unwell)
SEND_LIMIT = 60  # seconds in which send must have ended, whatever happens
# Time-outs for actions that have to wait for them, in ms; long enough for a busy machine.
TIMEOUTS = "connect=2500,answer=2500,freeze=4000,restore=3500,silence=1500,settle=1000"
PAST_TIMEOUTS = 7
BEFORE_COMMIT = ("source-agent.connected", "source-agent.checked", "source-agent.begun", "source-agent.frozen",
                 "source-agent.images-sent", "source-agent.pages-sent", "source-agent.ready", "source-guardian.started",
                 "source-guardian.stopped", "source-guardian.held")


class NotReached(Exception):
    """The fault point is not on the way of this migration."""


def await_send(case, seconds=PAST_TIMEOUTS + 5):
    end = time.monotonic() + seconds
    wait_for(lambda: case.sender.poll() is not None or time.monotonic() > end, "send or time-outs", seconds + 5, 0.05)


def cut(case):
    """The cable is pulled for a second; TCP gets over it."""
    case.network.cut("source")
    case.resume()
    time.sleep(1)
    case.network.cut("source", up=True)


def cut_off(case):
    """The cable stays pulled until send has given up."""
    case.network.cut("source")
    case.resume()
    await_send(case, 20)
    case.network.cut("source", up=True)


def kill_agents(case):
    case.kill(case.sender.pid, case.receiver.pid)
    case.resume()


def kill_peer(case):
    case.kill(case.receiver.pid if case.point.startswith("source") else case.sender.pid)
    case.resume()


def kill_guardians(case):
    case.kill(*case.guardians())
    case.resume()


def kill_side(case):
    """Agent and guardian of one host at the same moment; only the watch is left."""
    host = case.point.split("-")[0]
    case.kill(case.agent(host).pid, *case.guardians(host))
    case.resume()


def silent_peer(case):
    victim = case.receiver.pid if case.point.startswith("source") else case.sender.pid
    os.kill(victim, signal.SIGSTOP)
    case.resume(victim)
    await_send(case)
    if exists(victim):
        os.kill(victim, signal.SIGCONT)


def reboot_destination(case):
    """Everything of that host dies; its agent comes back under another boot id."""
    reboot(case, "destination")


def reboot_source(case):
    reboot(case, "source")


def reboot(case, host):
    agent = case.agent(host)
    victims = [p for p in case.ours() if case.host_of(p) == host]
    tree = descendants(case.old) if host == "source" else descendants(m) if (m := case.find()) else []
    # All at once, as power goes: the guardian must not see its agent die.
    for p in case.guardians(host):
        os.kill(p, signal.SIGSTOP)
    case.kill(agent.pid)
    agent.wait(timeout=10)
    kill_all([*victims, *tree])
    case.resume()
    case.forget_cgroups(host)
    case.tool.boot[host] = str(uuid.uuid4())
    case.rebooted = host
    if host == "destination":
        case.restart_receiver()


def stopped(case):
    """SIGSTOP past every time-out, then SIGCONT."""
    time.sleep(PAST_TIMEOUTS)
    case.resume()


def journal_full(case):
    case.fill_disk(case.point.split("-")[0])
    case.resume()


def out_of_memory(case):
    """Whatever the destination does from here on does not fit into its memory."""
    case.limit_memory([p for p in case.ours() if case.host_of(p) == "destination"], 1 << 20)
    case.resume()


def interrupt(case):
    case.agent(case.point.split("-")[0]).send_signal(signal.SIGINT)
    case.resume()


class Action:
    """`function`: what happens while the process at the fault point is stopped there; None: it does it itself.
    `points`: where it is tried by default; None: everywhere. `timed`: time-outs have to pass."""

    def __init__(self, function, points=None, timed=False):
        self.function, self.points, self.timed = function, points, timed


def points(*names):
    long = {"sa": "source-agent", "sg": "source-guardian", "da": "destination-agent", "dg": "destination-guardian"}
    return [f"{long[n.split('.')[0]]}.{n.split('.')[1]}" for n in names]


ACTIONS = {
    "kill-self": Action(None),
    "fail": Action(None),
    "kill-agents": Action(kill_agents, points("sa.frozen", "sa.ready", "sa.commit-sent", "sg.held", "da.prepared", "dg.gate-journaled")),
    "kill-guardians": Action(kill_guardians, points("sa.frozen", "sa.ready", "sa.commit-sent", "da.prepared-shells", "da.ready-sent",
                                                    "da.gate-open")),
    "kill-side": Action(kill_side, points("sa.begun", "sa.frozen", "sa.ready", "sg.held", "da.prepared-shells", "da.ready-sent")),
    "kill-peer": Action(kill_peer, points("sa.begun", "sa.pages-sent", "sa.commit-sent", "da.images-received", "da.gate-open")),
    "cut": Action(cut, points("sa.frozen", "sa.committed", "da.pages-received")),
    "cut-off": Action(cut_off, points("sa.begun", "sa.frozen", "sa.ready", "sa.commit-sent", "da.ready-sent"), True),
    "silent-peer": Action(silent_peer, points("sa.frozen", "sa.pages-sent", "sa.commit-sent", "da.prepared-shells"), True),
    "stop-self": Action(stopped, points("sa.frozen", "sa.ready", "sa.committed", "sg.held", "sg.before-commit", "da.ready-sent",
                                        "dg.shells"), True),
    "reboot-destination": Action(reboot_destination, points("sa.frozen", "sa.ready", "sa.commit-sent", "sa.gate-open",
                                                            "dg.gate-journaled"), True),
    "reboot-source": Action(reboot_source, points("sa.frozen", "sa.ready", "sa.commit-sent", "sa.gate-open"), True),
    "journal-full": Action(journal_full, points("sa.begun", "sa.ready", "sg.held", "sg.before-commit", "da.begun", "dg.finished",
                                                "da.commit-received")),
    "out-of-memory": Action(out_of_memory, points("da.begun", "da.images-received", "dg.shells")),
    "interrupt": Action(interrupt, points("sa.connected", "sa.checked", "sa.begun", "sa.frozen", "sa.images-sent", "sa.pages-sent",
                                          "sa.ready", "sg.stopped", "sa.commit-sent", "da.begun", "da.prepared-shells",
                                          "da.pages-received", "da.ready-sent")),
}


class Case:
    def __init__(self, binary, workloads, folder, point, action):
        self.binary, self.folder, self.point, self.action = binary, folder, point, action
        self.program = self.sender = self.receiver = self.network = None
        self.extra = []
        self.rebooted = None
        self.mounts, self.memory_group = {}, None
        self.started = time.monotonic()
        os.makedirs(folder)
        os.chmod(folder, 0o755)
        self.short = f"h{os.getpid()}"
        self.network = netns.Network(self.short, {"source": "10.77.2.1/24", "destination": "10.77.2.2/24"})
        self.tool = tool.Tool(binary, folder)
        if action == "journal-full":
            self.mount_state(point.split("-")[0])
        self.keys = tool.Keys(binary, os.path.join(folder, "keys"), ["source", "destination"])
        self.program = programs.Workload("sequence", os.path.join(workloads, "sequence"), [], os.path.join(folder, "program"),
                                         [*self.network.enter("source"), *netns.OTHER_CLOCKS], f"{self.short}-source")
        self.old = self.program.pid
        self.moved = None

    # The course of events.

    def run(self):
        self.program.ready()
        wait_for(lambda: len(self.lines()) > 50, "the program to count", 10)
        self.comm = self.program.comm()
        self.program.remember()
        action = ACTIONS.get(self.action, Action(None))
        rendezvous = action.function
        what = "stop-self" if rendezvous else self.action
        env = {"MIGRATE_FAULT": f"{self.point}:{what}"} if self.action != "none" else {}
        times = {"MIGRATE_TEST_TIMEOUTS": TIMEOUTS} if action.timed else {}
        source = self.point.startswith("source")
        self.receiver = self.tool.receive(self.network, "destination", self.keys, env=times if source else {**times, **env})
        self.sender = self.tool.send(self.network, "source", "destination", self.keys, self.old, env={**times, **env} if source else times, wait=False)
        if rendezvous:
            wait_for(lambda: self.stopped_ones() or self.sender.poll() is not None, "the fault point", 40, 0.05)
            if not self.stopped_ones():
                raise NotReached(f"send ended ({self.sender.returncode}) before {self.point} was reached")
            rendezvous(self)
        wait_for(lambda: self.sender.poll() is not None, "migrate send to end", SEND_LIMIT, 0.05)
        return self.settle()

    def settle(self):
        """After the fault: where does it run? If nowhere, resolve has to say why, or settle it."""
        code = self.sender.returncode
        where = self.wait_where(8 if code in (0, 1) else 3)
        resolved = ""
        if where != "source" and self.point in BEFORE_COMMIT and not self.rebooted and self.action in ("kill-side", "kill-agents"):
            raise programs.Unwell(f"nobody let the program run on after {self.action} (it runs: {where})")
        if self.action == "interrupt" and self.point in BEFORE_COMMIT and self.point.startswith("source-agent") and code != 1:
            raise programs.Unwell(f"an interrupted send exited {code}")
        self.make_room()
        # The operator acts when told to, or when nobody is left to tell.
        if where == "nowhere" or code not in (0, 1, 2) or '"untold"' in read(os.path.join(self.folder, "send.log")):
            resolved = self.resolve()
            where = self.wait_where(8)
        self.expect_single(where)
        if where == "nowhere" and self.rebooted and not self.find() and not exists(self.old):
            return f"lost with its host, which rebooted (exit {code})"
        if where == "nowhere":
            if not self.session_named(resolved):
                raise programs.Unwell(f"send exited {code}, no copy runs, and resolve does not say why: {resolved.strip()[-600:]}")
            self.operators_word()
            return f"held, resolve tells (exit {code})"
        if code == 0 and not self.rebooted and where != "destination":
            raise programs.Unwell("send exited 0, but the program runs on the source")
        if code in (1, 2) and not self.rebooted and where != "source":
            raise programs.Unwell(f"send exited {code}, but the program runs on the {where}")
        self.look_at_survivor(where)
        if probes := [n for n in os.listdir(os.path.join(self.folder, "program")) if n.startswith(".migrate")]:
            raise programs.Unwell(f"left behind: {probes}")
        gap = self.check_numbers()
        status = f"exit {code}" if code >= 0 else signal.Signals(-code).name
        return f"{'runs on' if where == 'source' else 'moved'} ({status}{', after resolve' if resolved else ''}, {gap:.0f} ms)"

    def resolve(self):
        """As an operator would: the receiver is there again, then both sides are asked."""
        self.restart_receiver()
        text = ""
        for host in ("source", "destination"):
            pid = self.old if host == "source" and exists(self.old) else None
            other = "destination" if host == "source" else "source"
            code, out = self.tool.resolve(self.network, host, other, self.keys, pid=pid)
            text += f"{host} (exit {code}): {out}\n"
        return text

    def operators_word(self):
        """A copy that is held at the source runs on once the operator types the session's id."""
        state = os.path.join(self.folder, "state-source")
        session = next(n.split(".")[0] for n in os.listdir(state) if n.endswith(".source.journal"))
        code, out = self.tool.resolve(self.network, "source", "destination", self.keys, "--force-run", session, pid=self.old)
        where = self.wait_where(8)
        if where != "source":
            raise programs.Unwell(f"resolve --force-run exited {code}, and the program runs: {where}\n{out.strip()[-600:]}")

    def restart_receiver(self):
        if all(p.poll() is not None for p in [self.receiver, *self.extra]):
            self.extra.append(self.tool.receive(self.network, "destination", self.keys))

    def agent(self, host):
        return self.sender if host == "source" else self.receiver

    def guardians(self, host=None):
        verbs = [f"guardian-{h}" for h in ("source", "destination") if host in (None, h)]
        found = [p for p in self.ours() if read(f"/proc/{p}/cmdline").split("\0")[1:2] in [[v] for v in verbs]]
        # What they forked looks like them; the copy's init is as much the copy as its tasks.
        return [p for p in found if (f := stat_fields(p)) and int(f[1]) not in found and self.in_our_pid_namespace(p)]

    @staticmethod
    def in_our_pid_namespace(pid):
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
        except OSError:
            return False

    def mount_state(self, host):
        folder = os.path.join(self.folder, f"state-{host}")
        os.makedirs(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "hand-over", folder], check=True)
        self.mounts[host] = folder

    def fill_disk(self, host):
        """Not a byte is left where the host has its journals."""
        with open(os.path.join(self.mounts[host], "filler"), "wb", buffering=0) as f:
            try:
                while f.write(b"x" * 4096):
                    pass
            except OSError:
                pass

    def forget_cgroups(self, host):
        """A reboot takes cgroups away."""
        sessions = {n[:8] for n in os.listdir(os.path.join(self.folder, f"state-{host}")) if n.endswith(".journal")}
        names = {f"migrate-{s}" + ("-in" if host == "destination" else "") for s in sessions}
        for folder in [c.split(" ", 1)[1] for c in remains.cgroups() if os.path.basename(c) in names]:
            wait_for(lambda f=folder: not read(f"{f}/cgroup.procs"), f"{folder} to empty", 5)
            os.rmdir(folder)

    def make_room(self):
        for folder in self.mounts.values():
            if os.path.exists(f"{folder}/filler"):
                os.unlink(f"{folder}/filler")

    def limit_memory(self, pids, limit):
        top = next((line.split()[1] for line in read("/proc/mounts").splitlines() if line.split()[2] == "cgroup"
                    and "memory" in line.split()[3].split(",")), None)
        if top is None:
            raise NotReached("there is no memory cgroup (v1) to be short of")
        self.memory_group = os.path.join(top, self.short)
        os.makedirs(self.memory_group, exist_ok=True)
        for name, value in [("memory.limit_in_bytes", limit), *[("cgroup.procs", p) for p in pids]]:
            with open(os.path.join(self.memory_group, name), "w") as f:
                f.write(str(value))

    def host_of(self, pid):
        """The host whose network namespace the process is in, or None."""
        try:
            mine = os.stat(f"/proc/{pid}/ns/net").st_ino
        except OSError:
            return None
        return next((h for h in ("source", "destination") if os.stat(f"/run/netns/{self.short}-{h}").st_ino == mine), None)

    def session_named(self, text):
        names = set()
        for host in ("source", "destination"):
            for folder, folders, files in os.walk(os.path.join(self.folder, f"state-{host}")):
                names |= {os.path.splitext(n)[0] for n in files + folders if len(n) >= 8}
        return any(n in text for n in names)

    # What is seen.

    def lines(self):
        return read(os.path.join(self.folder, "program", "sequence")).split("\n")[:-1]

    def find(self):
        if self.moved is None or not exists(self.moved):
            self.moved = find_moved(self.old, self.comm)
        return self.moved

    def where(self):
        """Looks for 0.3 s who counts. A copy counts if the file grows with the time namespace of a live task of its host."""
        seen = len(self.lines())
        time.sleep(0.3)
        new = self.lines()[seen:]
        if len(new) < 5:
            return "nowhere"
        epochs = {line.split()[0] for line in new}
        if len(epochs) > 1:
            return "both"
        return "source" if epochs == {self.first_epoch()} else "destination"

    def first_epoch(self):
        return self.lines()[0].split()[0]

    def wait_where(self, seconds):
        try:
            return wait_for(lambda: (w := self.where()) != "nowhere" and w, "a running copy", seconds)
        except Deadline:
            return "nowhere"

    def expect_single(self, where):
        if where == "both":
            raise programs.Unwell("two copies run")
        # The loser must be gone, unless both are held.
        if where == "source":
            wait_for(lambda: not find_moved(self.old, self.comm), "the copy at the destination to be discarded", 15, 0.1)
        if where == "destination":
            wait_for(lambda: not exists(self.old), "the copy at the source to be killed", 15, 0.1)

    def look_at_survivor(self, where):
        if where == "destination":
            pid = wait_for(self.find, "the moved program", 5)
            self.program.reap_old(self.sender.pid, self.receiver.pid, *[p.pid for p in self.extra])
            self.program.moved_to(pid, f"{self.short}-destination")
        self.program.check()
        facts = snapshot.tree_facts(self.program.pid)
        for pid, f in facts.items():
            if f.get("tracer") != "0":
                raise programs.Unwell(f"task {pid} is still traced by {f.get('tracer')}")
        if where == "source":
            held = [x for x in read(f"/proc/{self.old}/cgroup").splitlines() if "migrate" in x]
            if held:
                raise programs.Unwell(f"the program is still in {held[0]}")

    def check_numbers(self):
        """No repetition, no hole, one change of hosts at most; gives the longest pause in ms."""
        rows = [tuple(map(int, line.split())) for line in self.lines()]
        changes = 0
        longest = 0
        for (e1, n1, t1), (e2, n2, t2) in zip(rows, rows[1:]):
            if n2 != n1 + 1:
                raise programs.Unwell(f"number {n1} (host {e1}) is followed by {n2} (host {e2})")
            changes += e1 != e2
            longest = max(longest, t2 - t1)
        if changes > 1:
            raise programs.Unwell(f"the program changed hosts {changes} times")
        return longest / 1e6

    # Acting on processes: only those of this case.

    def ours(self):
        """Processes of the program under test, told by its file and by the hosts' network namespaces."""
        found, below = [], set(descendants(os.getpid()))
        binary = os.path.realpath(self.binary)
        for pid in all_pids():
            line = read(f"/proc/{pid}/cmdline")
            try:
                its = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)") == binary or binary in line.split("\0")[:2]
            except OSError:
                continue
            if its and (pid in below or self.folder in line or self.folder in read(f"/proc/{pid}/environ")):
                found.append(pid)
        return found

    def stopped_ones(self):
        return [p for p in self.ours() if (f := stat_fields(p)) and f[0] == "T"]

    def resume(self, but=None):
        for p in self.stopped_ones():
            if p != but:
                os.kill(p, signal.SIGCONT)

    @staticmethod
    def kill(*pids):
        for p in pids:
            try:
                os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass

    # The end.

    def end_and_look(self, before, top):
        self.close()
        try:
            wait_for(lambda: not remains.new_since(before, (top,)), "clean-up", 10, 0.1)
        except Deadline:
            raise programs.Unwell("left behind: " + "; ".join(remains.new_since(before, (top,)))) from None
        return ""

    def unmount(self):
        for folder in self.mounts.values():
            subprocess.run(["umount", "-l", folder], check=False)
        self.mounts = {}
        if self.memory_group:
            group, self.memory_group = self.memory_group, None

            def removed():
                try:
                    os.rmdir(group)
                except FileNotFoundError:
                    return True
                except OSError:
                    return False
                return True
            wait_for(removed, "the memory cgroup to empty", 10, 0.05)

    def close(self):
        """The tree is ended first, wherever it is; then agents that serve on."""
        if self.program:
            if moved := find_moved(self.old, getattr(self, "comm", "sequence")):
                kill_tree(moved)
            self.program.end()
        for p in [self.sender, self.receiver, *self.extra]:
            if p is not None and p.poll() is None:
                p.send_signal(signal.SIGTERM)
                try:
                    p.wait(timeout=3)
                except subprocess.TimeoutExpired:
                    kill_all(descendants(p.pid))
                    p.wait(timeout=5)
        self.sender = self.receiver = None
        self.extra = []
        if self.network:
            self.network.close()
            self.network = None
        self.program = None
        self.unmount()

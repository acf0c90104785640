"""One broken migration: two hosts, a program that counts, a fault, and what must be true afterwards."""
import os
import signal
import subprocess
import time
import uuid

from lib import netns, programs, remains, snapshot, tool
from lib.process import Deadline, all_pids, descendants, exists, find_moved, kill_all, kill_tree, read, run, stat_fields, wait_for

EXPECTED = (tool.Failed, Deadline, programs.Unwell)
SEND_LIMIT = 100  # seconds in which send must have ended, whatever happens


class NotReached(Exception):
    """The fault point is not on the way of this migration."""


def kill_self(case):
    """The process at the fault point dies there (by MIGRATE_FAULT itself)."""


def cut(case):
    case.network.cut("source")
    case.resume()
    time.sleep(3)
    case.network.cut("source", up=True)


def kill_both(case):
    case.kill(case.sender.pid, case.receiver.pid)
    case.resume()


def kill_peer(case):
    case.kill(case.receiver.pid if case.point.startswith("source") else case.sender.pid)
    case.resume()


def kill_guardians(case):
    case.kill(*[p for p in case.ours() if p not in (case.sender.pid, case.receiver.pid)])
    case.resume()


def silent_peer(case):
    victim = case.receiver.pid if case.point.startswith("source") else case.sender.pid
    os.kill(victim, signal.SIGSTOP)
    case.resume()
    wait_for(lambda: case.sender.poll() is not None or time.monotonic() > case.started + 75, "time-outs to pass", 90, 0.2)
    if exists(victim):
        os.kill(victim, signal.SIGCONT)


def reboot_destination(case):
    """Everything of that host dies; its agent comes back under another boot id."""
    reboot(case, "destination")


def reboot_source(case):
    reboot(case, "source")


def reboot(case, host):
    agent = case.sender if host == "source" else case.receiver
    victims = [p for p in case.ours() if case.host_of(p) == host]
    tree = descendants(case.old) if host == "source" else descendants(m) if (m := case.find()) else []
    case.kill(agent.pid)
    agent.wait(timeout=10)
    case.resume()
    kill_all([*victims, *tree])
    case.tool.boot[host] = str(uuid.uuid4())
    case.rebooted = host
    if host == "destination":
        case.restart_receiver()


def stopped(case):
    time.sleep(45)
    case.resume()


# name: (slow, what happens while the process at the fault point is stopped there; None: it does it itself)
ACTIONS = {
    "kill-self": (False, None),
    "fail": (False, None),
    "cut": (False, cut),
    "kill-both": (False, kill_both),
    "kill-peer": (True, kill_peer),
    "kill-guardians": (True, kill_guardians),
    "reboot-destination": (True, reboot_destination),
    "reboot-source": (True, reboot_source),
    "stop-self": (True, stopped),
    "silent-peer": (True, silent_peer),
}


class Case:
    def __init__(self, binary, workloads, folder, point, action):
        self.binary, self.folder, self.point, self.action = binary, folder, point, action
        self.program = self.sender = self.receiver = self.network = None
        self.extra = []
        self.rebooted = None
        self.started = time.monotonic()
        os.makedirs(folder)
        os.chmod(folder, 0o755)
        self.short = f"h{os.getpid()}"
        self.network = netns.Network(self.short, {"source": "10.77.2.1/24", "destination": "10.77.2.2/24"})
        self.tool = tool.Tool(binary, folder)
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
        rendezvous = ACTIONS.get(self.action, (False, None))[1]
        what = "stop-self" if rendezvous else self.action
        env = {"MIGRATE_FAULT": f"{self.point}:{what}"} if self.action != "none" else {}
        source = self.point.startswith("source")
        self.receiver = self.tool.receive(self.network, "destination", self.keys, env={} if source else env)
        self.sender = self.tool.send(self.network, "source", "destination", self.keys, self.old, env=env if source else {},
                                     wait=False)
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
        if where == "nowhere" or code not in (0, 1, 2):
            resolved = self.resolve()
            where = self.wait_where(8)
        self.expect_single(where)
        if where == "nowhere" and self.rebooted and not self.find():
            return f"lost with its host, which rebooted (exit {code})"
        if where == "nowhere":
            if not self.session_named(resolved):
                raise programs.Unwell(f"send exited {code}, no copy runs, and resolve does not say why: {resolved.strip()[-600:]}")
            return f"held, resolve tells (exit {code})"
        if code == 0 and not self.rebooted and where != "destination":
            raise programs.Unwell("send exited 0, but the program runs on the source")
        if code in (1, 2) and not self.rebooted and where != "source":
            raise programs.Unwell(f"send exited {code}, but the program runs on the {where}")
        self.look_at_survivor(where)
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

    def restart_receiver(self):
        if all(p.poll() is not None for p in [self.receiver, *self.extra]):
            self.extra.append(self.tool.receive(self.network, "destination", self.keys))

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

    def resume(self):
        for p in self.stopped_ones():
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

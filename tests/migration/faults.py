"""One broken migration: two hosts, a program that counts, a fault, and what must be true afterwards."""
import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import time

from fault_actions import ACTIONS, ALSO, ALSO_DONE, EXTRA, INJECT, LAZY, Action, TIMEOUTS
from lib import memory_limit, netns, programs, remains, snapshot, tool
from lib.process import Deadline, all_pids, descendants, exists, find_moved, kill_all, kill_tree, read, stat_fields, wait_for

EXPECTED = (tool.Failed, Deadline, programs.Unwell)
ENDED = ("Connection refused", "Connection reset", "Broken pipe", "cut the connection")  # heard from a receiver that ends
SEND_LIMIT = 60  # seconds in which send must have ended, whatever happens
PORT = 7777      # of the program that moves
MIB = 6          # of its memory, where that comes late
LAZY_OPTIONS = ["--bandwidth-limit", "6M", "--max-rounds", "1"]  # a feed of a second
BEFORE_COMMIT = re.compile(r"source-agent\.(connected|checked|begun|inject-.*|scanned|round-sent|reserved|frozen|images-sent|pages-sent|ready)$|"
                           r"source-guardian\.(started|inject-.*|stopped|locks-given-up|held)$")
BEFORE_READY = re.compile(r"destination-agent\.(begun|layout-received|round-received|reserved|images-received|prepared-shells|"
                          r"pages-received|prepared)$|"
                          r"destination-guardian\.(started|warm|reserved|shells|finished|prepared)$")


def removed(folder):
    """Of a cgroup, which counts those who are still ending and are not listed any more."""
    try:
        os.rmdir(folder)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        return False
    return True


class NotReached(Exception):
    """The fault point is not on the way of this migration."""


class Case:
    """In a process of its own, a subreaper, so that everything of the case is below it. `context`: of the driver."""

    def __init__(self, context, folder, point, action, mode):
        self.binary, self.keys, self.folder, self.point, self.action = context.binary, context.keys, folder, point, action
        self.host = "destination" if point.startswith("destination") else "source"
        self.other_host = "destination" if self.host == "source" else "source"
        self.program = self.sender = self.receiver = self.network = self.moved = self.rebooted = self.memory = None
        self.tree_killed = False  # what was frozen, and fed another
        self.done = False  # what is done by our hands
        self.extra, self.mounts = [], {}
        os.makedirs(folder)
        os.chmod(folder, 0o755)
        self.short = f"h{os.getpid()}"
        self.mode = mode
        self.tool = tool.Tool(context.binary, folder, ["--mode", mode, *(LAZY_OPTIONS if mode in LAZY else ()), *context.send_args])
        self.mib = MIB if mode in LAZY else 0
        try:
            self.set_up(context.workloads)
        except BaseException:
            self.close()
            raise

    def set_up(self, workloads):
        if self.action == "out-of-memory":
            self.memory = memory_limit.MemoryLimit(self.short)
        self.network = netns.Network(self.short, {"source": "10.77.2.1/24", "destination": "10.77.2.2/24"})
        if self.action == "journal-full":
            self.mount_state(self.host)
        # A tracer that dies meets a program of one thread, everything else one of several.
        self.listens = not (self.point.startswith(INJECT) and self.action == "kill-self" and "thread" not in self.point
                            and "mask" not in self.point)
        arguments = [str(2 if self.point.startswith(INJECT) and self.listens else 0), str(PORT if self.listens else 0), str(self.mib), "1"]
        self.program = programs.Workload("sequence", os.path.join(workloads, "sequence"), arguments,
                                         os.path.join(self.folder, "program"),
                                         [*self.network.enter("source"), *netns.OTHER_CLOCKS], f"{self.short}-source")
        self.old = self.program.pid

    # The course of events.

    def run(self):
        self.look_before()
        action = EXTRA.get((self.point, self.action)) or ACTIONS.get(self.action, Action(None))
        rendezvous = action.function
        what = "stop-self" if rendezvous else self.action
        also = "," + ALSO[self.point] if self.point in ALSO else ""
        if self.point in ALSO_DONE:
            at, rendezvous = ALSO_DONE[self.point]
            also = f",{at}:stop-self"
        env = {"MIGRATE_FAULT": f"{self.point}:{what}{also}", "MIGRATE_FAULT_REACHED": f"{self.folder}/reached"} if self.action != "none" else {}
        times = {"MIGRATE_TEST_TIMEOUTS": TIMEOUTS} if action.timed else {}
        env_of = {self.host: {**times, **env}, self.other_host: times}
        prefix_of = {self.host: self.memory.prefix() if self.memory else []}
        self.start_agents(env_of, prefix_of)
        if rendezvous:
            wait_for(lambda: self.stopped_ones() or self.sender.poll() is not None, "the fault point", 40, 0.05)
            if not self.stopped_ones():
                raise NotReached(f"send ended ({self.sender.returncode}) before {self.point} was reached")
            rendezvous(self)
            self.done = True
        wait_for(lambda: self.sender.poll() is not None or self.supervise(), "migrate send to end", SEND_LIMIT, 0.05)
        text = self.settle()
        if self.action != "none":
            self.expect_reached()
        return text

    def expect_reached(self):
        try:
            wait_for(lambda: self.point in read(f"{self.folder}/reached").split(), "the fault point", 3)
        except Deadline:
            raise NotReached(f"send ended ({self.sender.returncode}), and {self.point} was not reached, which proves nothing") from None

    @staticmethod
    def may_leave_probes(code):
        return False

    def look_before(self):
        self.program.ready()
        wait_for(lambda: len(self.lines()) > 50, "the program to count", 10)
        self.comm = self.program.comm()
        self.before = snapshot.tree_facts(self.old)
        self.program.remember()

    def start_agents(self, env_of, prefix_of=None):
        prefix_of = prefix_of or {}
        self.receiver = self.tool.receive(self.network, "destination", self.keys, env=env_of["destination"],
                                          prefix=prefix_of.get("destination", []))
        self.sender = self.tool.send(self.network, "source", "destination", self.keys, self.old, env=env_of["source"], wait=False,
                                     prefix=prefix_of.get("source", []))

    def settle(self):
        """After the fault: where does it run? If nowhere, resolve has to say why, or settle it."""
        code = self.sender.returncode
        if code not in (0, 1, 2):
            # A receiver is there again, as a supervisor of services sees to it: whoever is left settles it then.
            self.restart_receiver()
        where = self.wait_where(8 if code in (0, 1) else 10 if BEFORE_COMMIT.match(self.point) else 3, restart=code not in (0, 1, 2))
        resolved = ""
        if where != "source" and BEFORE_COMMIT.match(self.point) and not self.rebooted and self.action in ("kill-side", "kill-agents"):
            raise programs.Unwell(f"nobody let the program run on after {self.action} (it runs: {where})")
        if self.action in ("interrupt", "terminate", "hang-up"):
            self.check_interrupted(code)
        self.make_room()
        # The operator acts when nobody else did.
        if where == "nowhere" or not self.settled() or code not in (0, 1, 2):
            with contextlib.suppress(Deadline):
                wait_for(self.settled_by_us, "the session to be settled", 25, 0.1)
            where = self.wait_where(3)
            if where == "nowhere" or not self.settled():
                resolved = self.resolve()
                where = self.wait_where(8)
        self.expect_single(where)
        if where == "nowhere" and self.lost():
            return f"lost with its {'host, which rebooted' if self.rebooted else 'pages'} (exit {code})"
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
        probes = [n for n in os.listdir(os.path.join(self.folder, "program")) if n.startswith(".migrate")]
        if probes and not self.may_leave_probes(code):
            raise programs.Unwell(f"left behind: {probes}")
        gap = self.check_numbers()
        status = f"exit {code}" if code >= 0 else signal.Signals(-code).name
        return f"{'runs on' if where == 'source' else 'moved'} ({status}{', after resolve' if resolved else ''}, {gap:.0f} ms)"

    def check_interrupted(self, code):
        """Ctrl-C before commit, or before READY at the destination: the program runs on at the source."""
        if BEFORE_COMMIT.match(self.point) and code != 1:
            raise programs.Unwell(f"an interrupted send exited {code}")
        if BEFORE_READY.match(self.point) and self.where() == "destination":
            raise programs.Unwell(f"receive was interrupted before it was ready, and the program moved all the same (exit {code})")

    def resolve(self):
        """As an operator would: the receiver is there again, then both sides are asked."""
        text = ""
        for host in ("source", "destination"):
            out = ENDED[0]
            for _ in range(3):
                # A receiver that serves one migration only may end just now.
                if any(e in out for e in ENDED):
                    self.restart_receiver()
                    code, out = self.ask(host)
            text += f"{host} (exit {code}): {out}\n"
        return text

    def ask(self, host, *options):
        """`migrate resolve` on that host, in the clocks of its tree."""
        pid = self.old if host == "source" and exists(self.old) else None
        other = "destination" if host == "source" else "source"
        return self.tool.resolve(self.network, host, other, self.keys, *options, pid=pid)

    def operators_word(self):
        """A copy that is held at the source runs on once the operator types the session's id."""
        state = os.path.join(self.folder, "state-source")
        session = next(n.split(".")[0] for n in os.listdir(state) if n.endswith(".source.journal"))
        code, out = self.ask("source", "--force-run", session)
        where = self.wait_where(8)
        if where != "source":
            raise programs.Unwell(f"resolve --force-run exited {code}, and the program runs: {where}\n{out.strip()[-600:]}")

    def supervise(self):
        """A copy that misses pages needs a receiver that was killed to be there again; and a later feed may come to the same
        point."""
        if self.receivers_ended() and (self.journal("source") or {}).get("state") == "FROZEN":
            self.restart_receiver()  # as a manager of services would: the tree stands for the locks that its copy has
        there = self.journal("destination") if self.mib else None
        if there and there["state"] in ("GATE_OPEN", "WHOLE", "LOST"):
            self.restart_receiver()
            if self.done:
                self.resume()

    def receivers_ended(self):
        return all(p.poll() is not None for p in [self.receiver, *self.extra])

    def restart_receiver(self):
        if self.receivers_ended():
            self.extra.append(self.tool.receive(self.network, "destination", self.keys))

    def settled_by_us(self):
        """True when it is, or when nobody of ours would do it any more. The first receiver, which serves one migration, may
        notice late that the source is gone: another follows it whenever it ends."""
        self.restart_receiver()
        return self.settled() or not self.watches("source")

    def settled(self):
        """Nothing is left to be done about the session, as its journals have it."""
        sides = {host: self.journal(host) for host in ("source", "destination")}
        if here := sides["source"]:
            return here["state"] in ("ABORTED", "DONE", "LOST") and here["peer_settled"]
        return sides["destination"] is None or sides["destination"]["state"] in ("ABORTED", "DONE", "LOST")

    def journal(self, host):
        """Of the case's session; None before there is one, or when it is forgotten."""
        state = os.path.join(self.folder, f"state-{host}")
        names = [n for n in os.listdir(state) if n.endswith((".journal", ".aborted"))] if os.path.isdir(state) else []
        with contextlib.suppress(ValueError):
            if not names:
                return None
            found = json.loads(read(os.path.join(state, names[0])))
            # There was no room to write it: the name says it.
            return {**found, "state": "ABORTED"} if names[0].endswith(".aborted") else found

    def agent(self, host):
        return self.sender if host == "source" else self.receiver

    def agents(self, host):
        """Numbers of the host's agent and, at the destination, of those that it forked to serve a session each."""
        if host == "source":
            return [self.sender.pid]
        return [p for p in self.ours() if self.verb(p) == "receive" and self.host_of(p) == host]

    @staticmethod
    def verb(pid):
        return (read(f"/proc/{pid}/cmdline").split("\0") + ["", ""])[1]

    def watches(self, host):
        return [p for p in self.ours() if read(f"/proc/{p}/cmdline").split("\0")[1:3] == ["guardian-watch", host]]

    def guardians(self, host=None):
        verbs = [f"guardian-{h}" for h in ("source", "destination") if host in (None, h)]
        found = [p for p in self.ours() if self.verb(p) in verbs]
        # What they forked looks like them; the copy's init is as much the copy as its tasks.
        return [p for p in found if (f := stat_fields(p)) and int(f[1]) not in found and self.in_our_pid_namespace(p)]

    def lazy_host(self):
        """Its daemon, which has threads from the first pages on, and its holders."""
        def look():
            members = sorted((p for p in self.ours() if self.verb(p) == "guardian-lazy" and exists(p)), key=self.threads)
            return len(members) == 3 and members
        members = wait_for(look, "the lazy host", 5)
        return members[-1], members[:-1]

    @staticmethod
    def threads(pid):
        try:
            return len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            return 0

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

    def plug_in(self):
        """The cable is in again; returns when packets get through."""
        self.network.cut("source", up=True)

        def through():
            with socket.socket() as s:
                s.settimeout(0.5)
                return s.connect_ex((self.network.address("destination"), 9)) in (0, errno.ECONNREFUSED)
        wait_for(lambda: self.network.call("source", through), "the network to work again", 15)

    def forget_cgroups(self, host):
        """A reboot takes cgroups away."""
        ends = ("-in", "-lazy-0", "-lazy-1", "-lazy-2") if host == "destination" else ("",)
        for folder in remains.cgroups_of(self.sessions(), ends):
            wait_for(lambda f=folder: removed(f), f"{folder} to empty", 5)

    def sent(self):
        """What `send` has said."""
        return read(os.path.join(self.folder, "send.log"))

    def make_room(self):
        for folder in self.mounts.values():
            if os.path.exists(f"{folder}/filler"):
                os.unlink(f"{folder}/filler")

    def memory_victims(self):
        """Our processes of that host. After the gate opened the init belongs to the program."""
        ours = [p for p in self.ours() if self.host_of(p) == self.host]
        open_gate = self.point.startswith("destination") and not BEFORE_READY.match(self.point)
        return [p for p in ours if self.in_our_pid_namespace(p)] if open_gate else ours

    def host_of(self, pid):
        """The host whose network namespace the process is in, or None."""
        try:
            mine = os.stat(f"/proc/{pid}/ns/net").st_ino
        except OSError:
            return None
        return next((h for h in ("source", "destination") if os.stat(f"/run/netns/{self.short}-{h}").st_ino == mine), None)

    def sessions(self):
        """Ids of all sessions that this case had, from journals, locks and what was printed."""
        names = set()
        for host in ("source", "destination"):
            state = os.path.join(self.folder, f"state-{host}")
            if os.path.isdir(state):
                names |= {n for file in os.listdir(state) for n in re.findall(r"[0-9a-f]{32}", file)}
        for file in ("send.log", "receive.log", "commands.log"):
            for line in read(os.path.join(self.folder, file)).splitlines():
                if "nobody is in its cgroup" not in line:  # of others' sessions: `resolve` names what is left of any
                    names |= set(re.findall(r"\b[0-9a-f]{32}\b", line))
        return names

    def session_named(self, text):
        return any(n in text for n in self.sessions())

    # What is seen.

    def lines(self):
        return read(os.path.join(self.folder, "program", "sequence")).split("\n")[:-1]

    def find(self):
        if self.moved is None or not exists(self.moved):
            self.moved = find_moved(self.old, self.comm, self.folder)
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

    def lost(self):
        """A reboot, or who killed the frozen tree, took the only copy with it."""
        return (self.rebooted or self.tree_killed) and not exists(self.old) and not self.find()

    def wait_where(self, seconds, restart=False):
        """`restart`: a receiver that ends is followed by another."""
        def look():
            if restart:
                self.restart_receiver()
            return "nowhere" if self.lost() else (w := self.where()) != "nowhere" and w
        try:
            return wait_for(look, "a running copy", seconds)
        except Deadline:
            return "nowhere"

    def expect_single(self, where):
        if where == "both":
            raise programs.Unwell("two copies run")
        # The loser must be gone, unless both are held.
        if where == "source":
            wait_for(lambda: not find_moved(self.old, self.comm, self.folder), "the copy at the destination to be discarded", 15, 0.1)
        if where == "destination":
            wait_for(lambda: not exists(self.old), "the copy at the source to be killed", 15, 0.1)

    def look_at_survivor(self, where):
        if where == "destination":
            pid = wait_for(self.find, "the moved program", 5)
            self.program.reap_old(self.sender.pid, self.receiver.pid, *[p.pid for p in self.extra])
            self.program.moved_to(pid, f"{self.short}-destination")
        ignore = ()
        if self.lost_locks():
            open(os.path.join(self.folder, "program", "unlocked"), "w").close()
            ignore = (r" fd \d+",)
        self.expect_untouched(where, ignore)
        self.program.check()
        if self.listens:
            self.expect_audible(where)
        if where == "source":
            held = [x for x in read(f"/proc/{self.old}/cgroup").splitlines() if "migrate" in x]
            if held:
                raise programs.Unwell(f"the program is still in {held[0]}")

    def lost_locks(self):
        """Told: the copy behind its gate has them, and could not be reached."""
        return self.action in ("cut-off", "silent-peer") and "runs on without its" in self.sent()

    def expect_untouched(self, where, more=()):
        """No tracer, no mapping, descriptor or userfaultfd of ours is left; who was killed with them may take a moment."""
        found = []

        def same():
            after = snapshot.tree_facts(self.program.pid)
            ignore = (*self.program.ignore, *more, *(self.program.ignore_live if where == "destination" else ()))
            found[:] = snapshot.differences(self.before, after, ignore)
            found.extend(f"task {pid} is still traced by {f['tracer']}" for pid, f in after.items() if f.get("tracer", "0") != "0")
            return not found
        try:
            wait_for(same, "the program to be as before", 5, 0.2)
        except Deadline:
            raise programs.Unwell(f"it runs on at the {where}, and /proc differs: " + "; ".join(found)) from None

    def expect_audible(self, host):
        """Both its sockets answer, whoever opened the gate."""
        def asked(family, address):
            with socket.socket(family, socket.SOCK_STREAM) as s:
                s.settimeout(2)
                try:
                    s.connect(address)
                    return s.recv(64)
                except OSError:
                    return None
        wait_for(lambda: self.network.call(host, lambda: asked(socket.AF_INET, ("127.0.0.1", PORT))), "its TCP port to answer", 8)
        wait_for(lambda: asked(socket.AF_UNIX, os.path.join(self.folder, "program", "s")), "its Unix socket to answer", 8)

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

    def resume(self, but=()):
        self.signal(signal.SIGCONT, [p for p in self.stopped_ones() if p not in but])

    @staticmethod
    def signal(number, pids):
        for p in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(p, number)

    @classmethod
    def kill(cls, *pids):
        cls.signal(signal.SIGKILL, pids)

    # The end.

    def end_and_look(self):
        """Ends the program; nothing else of the case may be left."""
        sessions = self.sessions()
        self.close()
        remains.wait_for_none(self.folder, sessions)

    def close(self):
        """The tree is ended first, wherever it is; then agents that serve on. May be called again."""
        if self.program:
            if moved := find_moved(self.old, getattr(self, "comm", "sequence"), self.folder):
                kill_tree(moved)
            self.program.end()
        self.program = None
        for p in [self.sender, self.receiver, *self.extra]:
            if p is not None and p.poll() is None:
                p.send_signal(signal.SIGTERM)
                p.send_signal(signal.SIGCONT)
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
        for folder in self.mounts.values():
            subprocess.run(["umount", "-l", folder], check=False)
        self.mounts = {}
        if self.memory:
            self.memory.close()
            self.memory = None

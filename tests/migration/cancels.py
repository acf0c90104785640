#!/usr/bin/env python3
"""Cancels pre-copy migrations of a program at random moments, in many ways; it must be as if nobody had tried.

    cancels.py [--cancels N] [--only REGEX] [--seed N] [-j N]

After each: maps and their flags, huge pages, descriptors, tracer, cgroup as before; contents right; an mremap and a growing
heap work (the program `steady` does that in its check). A cancelled migration that was too late to be cancelled has moved the
program; that is checked in the same way. Between them, and at the end, complete migrations must succeed. A way is a case:
N is divided among them."""
import argparse
import contextlib
import os
import random
import re
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib import frame, hosts, parallel, programs, remains, snapshot, tool  # noqa: E402
from lib.process import Deadline, descendants, exists, innermost_pid, kill_all, read, stat_fields, wait_for  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (programs.Unwell, tool.Failed, Deadline, parallel.TimeUp)
SEND_LIMIT = 60
COMPLETE_EVERY = 5  # cancelled ones
TIMEOUTS = {"MIGRATE_TEST_TIMEOUTS": "connect=2000,answer=2500,freeze=5000,restore=5000,silence=2000,settle=1000"}
# Long rounds, so that most moments lie in them.
SLOW = ("--max-downtime", "0.5", "--max-rounds", "12")


def huge_pages(root):
    """{inner pid: {start of mapping: AnonHugePages in kB}} of a tree."""
    found = {}
    for pid in descendants(root):
        areas, start = {}, ""
        for line in read(f"/proc/{pid}/smaps").splitlines():
            if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
                start = line.split("-")[0]
            elif line.startswith("AnonHugePages:") and not line.endswith(" 0 kB"):
                areas[start] = int(line.split()[1])
        found[innermost_pid(pid)] = areas
    return found


def exact_maps(root):
    """{inner pid: lines of maps}, with the inode numbers left out, which a move changes."""
    return {innermost_pid(p): [re.sub(r"^(\S+ \S+ \S+) \S+ \d+", r"\1", line) for line in read(f"/proc/{p}/maps").splitlines()]
            for p in descendants(root)}


class Cancels:
    """In a process of its own, a subreaper."""

    def __init__(self, context, way, folder, number):
        self.context, self.way, self.folder, self.number = context, way, folder, number
        self.random = random.Random(f"{context.seed}-{way}")
        self.sender = self.program = None
        self.n, self.at, self.cancelled, self.moved = 0, 0, 0, 0
        os.makedirs(f"{folder}/logs")
        os.chmod(folder, 0o755)
        self.hosts = hosts.Hosts(context.binary, folder, f"c{os.getpid()}", f"10.77.{10 + list(WAYS).index(way)}")

    def run(self):
        for host in hosts.NAMES:
            self.start_receiver(host)
        self.program = programs.Workload("steady", f"{self.context.workloads}/steady", [], f"{self.folder}/program",
                                         self.hosts.enter("source"), self.hosts.namespace("source"))
        self.program.ready()
        self.program.check()
        self.inner = self.program.pid
        self.look()
        self.seconds = self.complete()
        for i in range(self.number):
            self.cancel()
            if (i + 1) % COMPLETE_EVERY == 0 or i + 1 == self.number:
                self.complete()
        self.resolve()  # else watches tell destinations of aborts while there is nobody left to be told
        return f"{self.cancelled} cancelled, {self.moved} came too late"

    def start_receiver(self, host):
        self.hosts.receive(host, f"{self.folder}/logs/receive-{host}", env=TIMEOUTS)

    @property
    def here(self):
        return hosts.NAMES[self.at]

    @property
    def there(self):
        return hosts.NAMES[1 - self.at]

    # What is compared.

    def look(self):
        pid = self.program.pid
        self.before = (snapshot.tree_facts(pid), exact_maps(pid), huge_pages(pid), self.cgroups())

    def cgroups(self):
        return {innermost_pid(p): read(f"/proc/{p}/cgroup") for p in descendants(self.program.pid)}

    def expect_as_before(self, what):
        """Who was killed, and the one who cleans up after him, may take a moment."""
        facts, maps, huge, cgroups = self.before
        found = []

        def same():
            pid = self.program.pid
            after = snapshot.tree_facts(pid)
            found[:] = snapshot.differences(facts, after, self.program.ignore)
            found.extend(f"task {p} is traced by {f['tracer']}" for p, f in after.items() if f.get("tracer", "0") != "0")
            for name, old, new in (("maps", maps, exact_maps(pid)), ("cgroup", cgroups, self.cgroups())):
                found.extend(f"task {p}: {name}: {snapshot.describe(old.get(p), new.get(p))}" for p in {*old, *new} if old.get(p) != new.get(p))
            # The kernel may make more of them by itself.
            now = huge_pages(pid)
            found.extend(f"task {p}: huge pages at {start}: were {size} kB, are {now.get(p, {}).get(start, 0)} kB"
                         for p, areas in huge.items() for start, size in areas.items() if now.get(p, {}).get(start, 0) < size)
            found.extend(f"task {p} is in state {s}" for p in descendants(pid) if (s := (stat_fields(p) or "?")[0]) in "Tt?")
            return not found
        try:
            wait_for(same, "the program to be as before", 8, 0.2)
        except Deadline:
            raise programs.Unwell(f"{what}: " + "; ".join(found)) from None

    # What is done.

    def start(self, *options):
        self.n += 1
        self.log = f"{self.folder}/logs/send-{self.n}"
        self.program.remember()
        self.sender = self.hosts.send(self.program.pid, self.here, self.log, [*options, *self.context.send_args], env=TIMEOUTS)

    def wait_for_end(self):
        wait_for(lambda: self.sender.poll() is not None, "migrate send to end", SEND_LIMIT)
        return self.sender.returncode

    def complete(self):
        """A whole migration; gives how long it took from its first event to the freeze."""
        self.start(*SLOW)
        if self.wait_for_end() != 0:
            raise tool.Failed(f"complete migration {self.n}: send exited {self.sender.returncode}: {tool.tail(self.log, 6)}\n"
                              f"receive said:\n{tool.tail(f'{self.folder}/logs/receive-{self.there}', 6)}")
        seen = tool.events(read(self.log))
        if not any(e.get("event") == "round" for e in seen):
            raise tool.Failed(f"complete migration {self.n} had no round")
        self.follow()
        return next(e["time"] for e in seen if e.get("event") == "gate-open") - seen[0]["time"]

    def follow(self):
        """The program has moved to the other host."""
        old = self.program.pid
        wait_for(lambda: not exists(old), "the tree at the source to be gone", 10)
        self.program.reap_old(*[p.pid for p in (*self.hosts.receivers.values(), self.hosts.clocks, self.sender)])
        new = wait_for(lambda: hosts.find_copy(self.inner, f"{self.folder}/program", old), "the moved tree", 10)
        self.program.moved_to(new, self.hosts.namespace(self.there))
        self.at = 1 - self.at
        self.program.check()
        facts = snapshot.tree_facts(new)
        if found := snapshot.differences(self.before[0], facts, (*self.program.ignore, *self.program.ignore_live)):
            raise programs.Unwell("after a complete migration: " + "; ".join(found))
        self.look()

    def cancel(self):
        options, act, *decided = WAYS[self.way](self)
        self.start(*options)
        moment = self.random.uniform(0, 0.03 if decided else self.seconds * 1.1)
        if decided:
            wait_for(lambda: self.sender.poll() is not None or '"decision":"stop"' in read(self.log), "the decision to stop", SEND_LIMIT, 0.002)
        if act:
            time.sleep(moment)  # not a wait: the moment is what is tried
            act()
        code = self.wait_for_end()
        self.restore_hosts()
        outcome = self.where()
        what = f"cancelled migration {self.n} ({self.way} after {moment:.3f} s, exit {code})"
        if outcome == "moved":
            self.moved += 1
            if code == 1:
                raise programs.Unwell(f"{what}: the program has moved")
            self.follow()
            return
        self.cancelled += 1
        # A signal that comes before send has said what to do with it ends it.
        # It was in doubt, and where() asked.
        in_doubt = code == 3 and self.way in ("cut", "kill-receiver")
        # Who serves a migration that begins just then refuses it: it has no daemon any more.
        refused = code == 2 and self.way == "kill-receiver" and '"touched":false' in tool.tail(self.log, 3)
        if not in_doubt and not refused and code not in (1, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            raise programs.Unwell(f"{what}: the program runs at the source: {tool.tail(self.log, 3)}")
        self.expect_as_before(what)
        try:
            self.program.check()
        except EXPECTED as e:
            raise programs.Unwell(f"{what}: {e}") from None
        self.expect_as_before(f"{what}, after the check")
        with contextlib.suppress(Deadline):
            return wait_for(self.discarded, "the copy to be discarded", 3)
        # The destination could not be told.
        out = self.resolve()
        try:
            wait_for(self.discarded, "the copy to be discarded", 15)
        except Deadline as e:
            raise programs.Unwell(f"{what}: {e}; resolve said: {out[-500:]}") from None

    def restore_hosts(self):
        if self.way == "cut":
            self.hosts.network.cut(self.here, up=True)
        if self.hosts.receivers[self.there].poll() is not None:
            self.hosts.receivers.pop(self.there)
            self.start_receiver(self.there)

    def where(self):
        """"here" or "moved". What is in doubt after the death of an agent is settled as an operator would."""
        def seen():
            if exists(self.program.pid):
                held = "/migrate-" in read(f"/proc/{self.program.pid}/cgroup")
                return "here" if not held and self.beats() else None
            return "moved" if hosts.find_copy(self.inner, f"{self.folder}/program", self.program.pid) and self.beats() else None
        with contextlib.suppress(Deadline):
            return wait_for(seen, "the program", 4 if self.sender.returncode in (0, 1) else 1.5, 0.05)
        out = self.resolve()
        try:
            return wait_for(seen, "the program", 8, 0.05)
        except Deadline:
            copy = hosts.find_copy(self.inner, f"{self.folder}/program", self.program.pid)
            raise programs.Unwell(f"after cancelled migration {self.n} ({self.way}) nothing runs (task {self.program.pid}: "
                                  f"{(stat_fields(self.program.pid) or '-')[0]}, copy {copy}, beats {self.beats()}); resolve said: {out[-800:]}") from None

    def resolve(self):
        pid = self.program.pid if exists(self.program.pid) else None
        out = ""
        for host in (self.here, self.there):
            _, text = self.hosts.tool.resolve(
                self.hosts.network, host, hosts.NAMES[1 - hosts.NAMES.index(host)], self.hosts.keys, pid=pid if host == self.here else None)
            out += text
        return out

    def discarded(self):
        return not hosts.find_copy(self.inner, f"{self.folder}/program", self.program.pid)

    def beats(self):
        """The program's heart beats."""
        before, end = read(f"{self.folder}/program/heartbeat"), time.monotonic() + 0.3
        while time.monotonic() < end:
            time.sleep(0.02)
            if read(f"{self.folder}/program/heartbeat") != before:
                return True
        return False

    # The end.

    def sessions(self):
        return {n for host in hosts.NAMES for log in (f"state-{host}",) if os.path.isdir(f"{self.folder}/{log}")
                for f in os.listdir(f"{self.folder}/{log}") for n in re.findall(r"[0-9a-f]{32}", f)}

    def end_and_look(self):
        sessions = self.sessions()
        self.close()
        remains.wait_for_none(self.folder, sessions)

    def close(self):
        if self.program:
            self.program.end()
        if self.sender and self.sender.poll() is None:
            kill_all([self.sender.pid])
        self.hosts.close()


# Each gives the options of the send, and what to do at the moment.

def by_signal(number):
    return lambda c: (SLOW, lambda: c.sender.send_signal(number))


def cut(c):
    return SLOW, lambda: c.hosts.network.cut(c.here)


def no_convergence(c):
    """The policy gives up by itself, after a number of rounds."""
    return ("--max-downtime", "0.001", "--max-rounds", str(c.random.randint(1, 8)), "--on-no-convergence", "cancel"), None


def kill_receiver(c):
    def kill():
        c.hosts.receivers[c.there].kill()
        c.hosts.receivers[c.there].wait(10)  # until then it seems to serve on
    return SLOW, kill


def kill_near_freeze(c):
    """Whoever holds the tree at that moment has more to put back. The moment counts from the decision to stop."""
    return *by_signal(signal.SIGKILL)(c), True


WAYS = {"interrupt": by_signal(signal.SIGINT), "terminate": by_signal(signal.SIGTERM), "kill": by_signal(signal.SIGKILL), "cut": cut,
        "no-convergence": no_convergence, "kill-receiver": kill_receiver,
        "kill-near-freeze": kill_near_freeze}


def one(context, way, folder, number):
    return frame.one_case(lambda: Cancels(context, way, folder, number), folder, EXPECTED, context.keep)[:3]


class Context:
    def __init__(self, o):
        self.binary = os.path.abspath(o.migrate or os.path.join(o.build, "migrate", "migrate"))
        self.workloads = os.path.abspath(o.workloads or os.path.join(o.build, "tests", "workloads"))
        self.seed, self.keep, self.send_args = o.seed, o.keep, o.send_arg


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"))
    p.add_argument("--migrate")
    p.add_argument("--workloads")
    p.add_argument("--cancels", type=int, default=100)
    p.add_argument("--only", action="append", default=[], help="regular expression over the ways")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("-j", "--jobs", type=int, default=1)
    p.add_argument("--list", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep all logs")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: look for remains of each case only")
    p.add_argument("--send-arg", action="append", default=[])
    return p.parse_args()


def main():
    options = parse()
    wanted = [w for w in WAYS if not options.only or any(re.search(o, w) for o in options.only)]
    if options.list:
        print("\n".join(wanted))
        return 0
    if not wanted:
        print(f"no way matches {options.only}; --list names them")
        return 2
    context, share = Context(options), -(-options.cancels // len(wanted))
    with frame.run_of_cases(options, "mcan-") as (top, counts):
        jobs = [(w, f"{top}/{w}", share) for w in wanted]
        frame.tell_cases(counts, jobs, lambda job: one(context, *job), options.jobs, 120 + 20 * share, top)
    return frame.closing_line(counts)


if __name__ == "__main__":
    frame.command(main)

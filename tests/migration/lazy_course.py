#!/usr/bin/env python3
"""A program that never leaves its memory alone is moved by post-copy over a slow link, and all who bring its pages are killed.

    lazy_course.py [--full] [--seed N] [--moves N] [--only REGEX] [--keep]

`restless` knows each byte of its memory: 16 threads read it in the order of the fill and against it, 4 change, move, discard and
map it, their children read everything or execute. While its pages follow at 1 MB/s and khugepaged is at its busiest, connections
are cut and, one after the other at random moments, each process of ours is killed: the lazy host's daemon and holders, agents,
guardians and watches of both hosts, the receiver (which is started again, as is `migrate resolve` where nobody feeds any more).
It must arrive whole: no wrong byte, no lost child, nobody hangs, one copy, nothing left behind. --full: 50 cuts, and 20 kills of
each, and `pool`, whose processes come and go and share their memory, takes the same course.
`joins`: a program whose threads end, with robust mutexes, and are joined while their stacks are lazy, with several C libraries."""
import json
import os
import random
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib import huge_pages, remains, suite  # noqa: E402
from lib.process import Deadline, descendants, exists, kill_all, read, spawn, stat_fields, wait_for  # noqa: E402
from lib.relay import Relay  # noqa: E402
from lib.skip import Skip  # noqa: E402
from lib.suite import expect  # noqa: E402
from postcopy_move import Move  # noqa: E402

KILLED = ("daemon", "holder", "other-holder", "source-guardian", "destination-guardian", "source-agent", "destination-agent",
          "source-watch", "destination-watch", "receiver")
MIB = 48
PACE_US = {"postcopy": 15_000, "hybrid": 5_000}
# Bytes a second of a connection, until it runs there and afterwards; in hybrid only what was written since the round follows.
ROUND = {"postcopy": 0, "hybrid": 80_000_000}
FILL = {"postcopy": 1_000_000, "hybrid": 200_000}
HANGS_S = 60
JOINS_MIB = 24


class Course(Move):
    """One move. `counts`: how often each thing was done."""

    def __init__(self, context, folder, mode, seed, workload):
        self.random, self.counts, self.seed = random.Random(f"{seed}-{mode}"), {}, seed
        self.resolver = self.relay = self.members = None
        super().__init__(context, folder, mode, workload, options=())

    def begin(self, via=None):
        network = self.hosts.network
        there = (network.address("destination"), 7400)
        self.relay = network.call("client", lambda: Relay(there, address=network.address("client"),
                                                           rate_up=ROUND[self.mode]))
        self.threads = len(os.listdir(f"/proc/{self.program.pid}/task"))
        super().begin(f"{network.address('client')}:{self.relay.port}")
        self.relay.rate_up = FILL[self.mode]

    # Who brings pages.

    def agent_of_source(self):
        """Whoever feeds: `send`, then the watch, then the operator's `resolve`."""
        if self.sender.poll() is None:
            return [self.sender.pid]
        if watch := self.watch("source"):
            return watch
        if self.resolver is None or self.resolver.poll() is not None:
            command, prefix = self.hosts.tool.resolve_command(self.hosts.network, "source", "destination", self.hosts.keys,
                                                              pid=self.hosts.clocks.pid)
            self.resolver = spawn(command, log=f"{self.folder}/resolve", prefix=prefix, env=self.hosts.tool.environment("source"))
        return [self.resolver.pid]

    def below(self, words):
        """Our processes of the case, whoever's children they are by now."""
        return [p for p in descendants(os.getpid()) if words in read(f"/proc/{p}/cmdline").replace("\0", " ") and exists(p)]

    def source_guardian(self):
        return self.below("migrate guardian-source ")

    def destination_guardian(self):
        return self.below("migrate guardian-destination ")

    def destination_agent(self):
        return [p for p in self.below("/migrate receive --listen ") if p != self.hosts.receivers["destination"].pid]

    def watch(self, host):
        return self.named(f"guardian-watch {host} ", self.session)

    def victims(self, name):
        lazy_daemon = self.lazy_daemon()
        holders = sorted((p for p in self.lazy() if p not in lazy_daemon), key=lambda p: int((stat_fields(p) or [0] * 20)[19]))
        return {"daemon": lambda: lazy_daemon, "holder": lambda: holders[:1], "other-holder": lambda: holders[1:2],
                "source-guardian": self.source_guardian, "destination-guardian": self.destination_guardian,
                "source-agent": self.agent_of_source, "destination-agent": self.destination_agent,
                "source-watch": lambda: self.watch("source"), "destination-watch": lambda: self.watch("destination"),
                "receiver": lambda: [self.hosts.receivers["destination"].pid]}[name]()

    # What is done to them.

    def do(self, name):
        """False: the program was whole before it could be done."""
        def able():
            self.agent_of_source()
            return not self.feeding() or (self.lazy_complete() and self.victims(name) if name != "cut" else [0])
        try:
            found = wait_for(able, "", 30, 0.02)
        except Deadline:
            raise suite.Unwell(f"after {self.counts} no {name} to be killed, or the lazy host is not complete: {self.lazy()}, daemon "
                               f"{self.lazy_daemon()}; below the driver: {self.below('migrate ')}") from None
        if found is True:
            return False
        self.expect_same_members(name)
        self.cut() if name == "cut" else self.kill(name, found[0])
        self.counts[name] = self.counts.get(name, 0) + 1
        return True

    def expect_same_members(self, name):
        """None of the lazy host has ended that was not killed."""
        members = set(self.lazy())
        expect(self.members is None or members == self.members,
               f"after {self.counts} processes of the lazy host are others: {self.members} became {members}")
        self.members = None if name in ("daemon", "holder", "other-holder") else members

    def kill(self, name, pid):
        kill_all([pid])
        if name == "receiver":
            self.hosts.receivers.pop("destination").wait(10)
            self.start_receiver()
        if name.startswith("source"):
            self.agent_of_source()

    def cut(self):
        seconds = self.random.choice((0, 0, self.random.uniform(0.05, 1.5)))
        if seconds and self.random.random() < 0.5:
            self.hosts.network.cut("source")
            time.sleep(seconds)  # not a wait: for so long the cable is pulled
            return self.hosts.network.cut("source", up=True)
        self.relay.cut(down=bool(seconds))
        time.sleep(seconds)  # not a wait: for so long nothing is let through
        self.relay.up()

    def feeding(self):
        return exists(self.old) and self.state("destination") not in ("WHOLE", "DONE")

    def look(self):
        """The program says at once what is wrong."""
        trouble = self.told().get("trouble", "")
        expect(not trouble, trouble)
        expect(exists(self.copy), "the program is gone")

    def told(self):
        lines = read(f"{self.folder}/program/counts").splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    def run(self, plan):
        for name in plan:
            if not self.do(name):
                break
            self.look()
            time.sleep(self.random.uniform(0, 0.6))  # not a wait: the moment is what is tried
        self.relay.rate_up = 0 if self.counts == {n: plan.count(n) for n in plan} else self.relay.rate_up

        def over():
            self.look()
            return not self.feeding() or not self.agent_of_source()
        wait_for(over, "the program to be whole", 120, 0.05)
        self.settle()
        self.arrives(code=None)
        expect(len(os.listdir(f"/proc/{self.copy}/task")) == self.threads, "a thread is lost")

    def settle(self):
        """Where all who would do it were killed, the operator does."""
        try:
            wait_for(lambda: self.settled() or not (self.sender.poll() is None or self.watch("source") or self.watch("destination")),
                     "both sides to settle it", 20, 0.05)
        except Deadline:
            raise suite.Unwell(f"not settled: {self.state('source')}, {self.state('destination')}") from None
        said = []
        for host, other in (("source", "destination"), ("destination", "source")):
            if not self.settled():
                code, out = self.hosts.tool.resolve(self.hosts.network, host, other, self.hosts.keys,
                                                    pid=self.hosts.clocks.pid if host == "source" else None)
                said.append(f"resolve on the {host} exited {code}: {out[-300:]}")
        expect(self.settled(), f"{self.state('source')}, {self.state('destination')}; {said}")

    def settled(self):
        return all(self.state(host) == "DONE" for host in ("source", "destination"))

    def close(self):
        if self.resolver and self.resolver.poll() is None:
            self.resolver.kill()
            self.resolver.wait()
        if self.relay:
            self.relay.close()
        super().close()


class Joins(Move):
    """Threads that were made before the move, or on memory that is lazy, end while it is."""

    def __init__(self, context, folder, program, prefix, arguments=()):
        super().__init__(context, folder, "postcopy", (program, str(JOINS_MIB), *arguments), ("--bandwidth-limit", "4M"), program_prefix=prefix)

    def begin(self, via=None):
        self.program.check()
        super().begin(via)

    def run(self):
        self.program.moved_to(self.copy, self.hosts.namespace("destination"))
        for _ in range(2):
            self.program.check()
            expect(self.is_feeding(), "it was whole before its threads were joined")
        self.arrives()


def joins(program, *prefix, arguments=()):
    def case(context, folder):
        if not os.access(f"{context.workloads}/{program}", os.X_OK):
            raise Skip("musl-gcc is not installed (scripts/install-deps installs it)")
        move = Joins(context, folder, program, prefix, arguments)
        try:
            move.run()
        finally:
            move.close()
        remains.wait_for_none(folder, {move.session})
    return case


LAYOUTS = {"joins/glibc": joins("joins"), "joins/glibc-without-rseq": joins("joins", "env", "GLIBC_TUNABLES=glibc.pthread.rseq=0"),
           "joins/musl": joins("joins_musl"), "joins/shared": joins("joins", arguments=("shared",))}


def course(mode, seed, plan, counts, workload=None):
    def case(context, folder):
        began = time.monotonic()
        restless = ("restless", str(random.Random(seed).randrange(1 << 30)), str(MIB), str(PACE_US[mode]), str(HANGS_S))
        move = Course(context, folder, mode, seed, workload or restless)
        try:
            todo = list(plan)
            move.random.shuffle(todo)
            # Who is gone when its agent is.
            for first, then in (("source-guardian", "source-agent"), ("destination-guardian", "destination-agent")):
                if first in todo and then in todo and todo.index(first) > todo.index(then):
                    a, b = todo.index(first), todo.index(then)
                    todo[a], todo[b] = todo[b], todo[a]
            switched = time.monotonic()
            move.run(todo)
            told = move.told()
        finally:
            with open(counts, "a") as f:
                f.write(json.dumps(move.counts) + "\n")
            move.close()
        remains.wait_for_none(folder, {move.session})
        done = ", ".join(f"{n} {move.counts[n]}" for n in sorted(move.counts))
        return (f"seed {seed}: {done}; fed for {time.monotonic() - switched:.0f} of {time.monotonic() - began:.0f} s; "
                f"{told.get('forks')} forks, {told.get('moves')} mremaps, {told.get('refused')} refused")
    return case


def more(parser):
    parser.add_argument("--full", action="store_true", help="50 cuts, and 20 kills of each")
    parser.add_argument("--moves", type=int, default=0, help="so many (default: 2, with --full 24)")
    parser.add_argument("--seed", type=int, default=0, help="repeats a course, as far as moments can be repeated")


def main():
    options = suite.arguments(__doc__, more)
    seed = options.seed or int(time.time())
    moves = options.moves or (24 if options.full else 2)
    plan = ["cut"] * 3 + list(KILLED)
    options.timeout = max(options.timeout, 240)
    with tempfile.NamedTemporaryFile(prefix="mcourse-") as counts, huge_pages.khugepaged_busy() as why:
        before = huge_pages.collapsed()
        pools = {f"pool/{mode}": course(mode, seed, plan, counts.name, ("pool", str(MIB))) for mode in ("postcopy", "hybrid")}
        cases = {**LAYOUTS, **{f"course/{mode}-{n}": course(mode, seed + n, plan, counts.name)
                               for n, mode in zip(range(moves), ("postcopy", "hybrid") * moves)},
                 **(pools if options.full else {})}
        code = suite.main(options, cases, "mcrs-")
        if options.list:
            return code
        totals = {}
        for line in read(counts.name).splitlines():
            for name, times in json.loads(line).items():
                totals[name] = totals.get(name, 0) + times
        print("   " + ", ".join(f"{n} {totals.get(n, 0)}" for n in ("cut", *KILLED)) + f"; seed {seed}; khugepaged " +
              (why or f"made {huge_pages.collapsed() - before} huge pages"))
        if options.full and not options.moves and (totals.get("cut", 0) < 50 or min(totals.get(n, 0) for n in KILLED) < 20):
            print("FAIL full-course: that is less than 50 cuts and 20 kills of each")
            return 1
    return code


if __name__ == "__main__":
    sys.exit(main())

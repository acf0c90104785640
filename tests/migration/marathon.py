#!/usr/bin/env python3
"""Moves programs under load to and fro between two hosts by pre-copy, many times; they must be equal each time.

    marathon.py [--moves N] [--only REGEX] [-j N] [--seed N]

- redis: a client writes; the server's digest equals that of an independent replay of all acknowledged writes;
- nginx: two clients ask; every answer is right, and no request fails but in a downtime;
- wild: a tree that forks, executes, maps and opens at random, and checks itself.

Receivers serve from the first move to the last and must not gather descriptors. One line a move goes to FOLDER/moves."""
import argparse
import os
import re
import shutil
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib import courses, frame, hosts, parallel, programs, redis, remains, tool  # noqa: E402
from lib.process import Deadline, descendants, exists, kill_all, read, wait_for  # noqa: E402
from lib.skip import Skip  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (programs.Unwell, tool.Failed, Deadline, redis.RedisError, parallel.TimeUp)
SEND_LIMIT = 60
SUBNETS = {"wild": "10.77.3", "redis": "10.77.4", "nginx": "10.77.5"}


class Marathon:
    """In a process of its own, a subreaper."""

    def __init__(self, context, name, folder):
        self.context, self.name, self.folder = context, name, folder
        self.course = self.sender = None
        self.moved, self.gaps = set(), []
        os.makedirs(f"{folder}/logs")
        os.chmod(folder, 0o755)
        self.hosts = hosts.Hosts(context.binary, folder, f"r{os.getpid()}", SUBNETS[name])

    def run(self):
        for host in hosts.NAMES:
            self.hosts.receive(host, f"{self.folder}/logs/receive-{host}", self.context.receive_args)
        self.course = courses.COURSES[self.name](self.context, self.hosts, self.folder)
        self.course.ready()
        self.inner = self.course.program.pid
        for n in range(1, self.context.moves + 1):
            self.move(n)
        told = self.course.finish()
        gaps = sorted(self.gaps)
        return f"{len(gaps)} moves, downtime {gaps[len(gaps) // 2]:.0f} ms (median), {gaps[-1]:.0f} ms (longest)" + (
            f"; {told}" if told else "")

    def move(self, n):
        here, there = hosts.NAMES if n % 2 else hosts.NAMES[::-1]
        log, started, program = f"{self.folder}/logs/send-{n}", time.monotonic(), self.course.program
        program.remember()
        old = program.pid
        before = hosts.descriptors(self.hosts.receivers[there].pid)
        self.sender = self.hosts.send(old, here, log, [*self.course.send_options, *self.context.send_args])
        wait_for(lambda: self.sender.poll() is not None, f"move {n}: migrate send to end", SEND_LIMIT)
        seen = tool.events(read(log))
        self.moved |= {e["session"] for e in seen if "session" in e}
        if self.sender.returncode != 0:
            raise tool.Failed(f"move {n}: send exited {self.sender.returncode}: {tool.tail(log, 6)}\n"
                              f"receive said:\n{tool.tail(f'{self.folder}/logs/receive-{there}', 6)}")
        rounds = [e for e in seen if e.get("event") == "round"]
        done = next(e for e in seen if e.get("event") == "done")
        if not rounds:
            raise tool.Failed(f"move {n} had no round of pre-copy")
        wait_for(lambda: not exists(old), "the tree at the source to be gone", 10)
        program.reap_old(*self.children())
        new = wait_for(lambda: hosts.find_copy(self.inner, self.course.word, old), f"move {n}: the tree at the {there}", 10)
        program.moved_to(new, self.hosts.namespace(there))
        opened = next(e["time"] for e in seen if e.get("event") == "gate-open")
        self.gaps.append(done["downtime_ms"])
        try:
            self.course.after_move(n, (opened - done["downtime_ms"] / 1000, opened))
        except EXPECTED as e:
            raise programs.Unwell(f"after move {n} ({here} to {there}): {e}") from None
        self.expect_no_leak(n, there, before)
        with open(f"{self.folder}/moves", "a") as f:
            f.write(f"{n} {here} to {there}: {len(rounds)} rounds, {done['bytes']} bytes, downtime {done['downtime_ms']:.1f} ms, "
                    f"{time.monotonic() - started:.2f} s, {len(descendants(new))} tasks\n")
        if not self.context.keep and n > 2:
            os.unlink(f"{self.folder}/logs/send-{n - 2}")

    def children(self):
        """Processes that are waited for elsewhere."""
        others = (getattr(self.course, "writer", None), getattr(self.course, "replica", None), self.hosts.clocks)
        return [p.pid for p in (*self.hosts.receivers.values(), *others, self.sender) if p]

    def expect_no_leak(self, n, there, before):
        """A receiver that has served holds no more than before."""
        p = self.hosts.receivers[there]
        try:
            wait_for(lambda: n <= 2 or hosts.descriptors(p.pid) <= before, "clean-up", 10, 0.05)
        except Deadline:
            raise programs.Unwell(f"move {n}: the receiver of {there} has {hosts.descriptors(p.pid)} descriptors and had {before}") from None

    def end_and_look(self):
        self.close()
        remains.wait_for_none(self.folder, self.moved)

    def sessions(self):
        return self.moved

    def close(self):
        if self.course:
            self.course.close()
        if self.sender and self.sender.poll() is None:
            kill_all([self.sender.pid])
        self.hosts.close()


def one(context, name, folder):
    def start():
        if (needed := courses.NEEDS.get(name)) and not shutil.which(needed):
            raise Skip(f"{needed} is not installed (scripts/install-deps installs it)")
        return Marathon(context, name, folder)
    return frame.one_case(start, folder, EXPECTED, context.keep,
                          tails=lambda folder: "\n  " + "\n  ".join(tool.tail(f"{folder}/moves", 3).splitlines()))[:3]


class Context:
    def __init__(self, o):
        self.binary = os.path.abspath(o.migrate or os.path.join(o.build, "migrate", "migrate"))
        self.workloads = os.path.abspath(o.workloads or os.path.join(o.build, "tests", "workloads"))
        self.moves, self.seed, self.pace, self.mib, self.rest, self.keep = o.moves, o.seed, o.pace, o.mib, o.rest, o.keep
        self.send_args, self.receive_args = o.send_arg, o.receive_arg


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"))
    p.add_argument("--migrate")
    p.add_argument("--workloads")
    p.add_argument("--moves", type=int, default=200)
    p.add_argument("--only", action="append", default=[], help="regular expression over the names")
    p.add_argument("--seed", type=int, default=0, help="of wild (0: from the time; a failure names it)")
    p.add_argument("--pace", type=int, default=10, help="mean ms between two steps of a member of wild")
    p.add_argument("--mib", type=int, default=16, help="data in redis-server")
    p.add_argument("--rest", type=float, default=3, help="ms between two batches of the writing client")
    p.add_argument("-j", "--jobs", type=int, default=1)
    p.add_argument("--list", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep all logs")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: look for remains of each case only")
    p.add_argument("--send-arg", action="append", default=[])
    p.add_argument("--receive-arg", action="append", default=[])
    return p.parse_args()


def main():
    options = parse()
    wanted = [n for n in courses.COURSES if not options.only or any(re.search(o, n) for o in options.only)]
    if options.list:
        print("\n".join(wanted))
        return 0
    context = Context(options)
    with frame.run_of_cases(options, "mrun-") as (top, counts):
        jobs = [(n, f"{top}/{n}") for n in wanted]
        frame.tell_cases(counts, jobs, lambda job: one(context, *job), options.jobs, 120 + 15 * options.moves, top)
    return frame.closing_line(counts)


if __name__ == "__main__":
    frame.command(main)

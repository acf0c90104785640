#!/usr/bin/env python3
"""Sends received programs on: ten hops in a ring of three hosts, whose clocks differ. After each the program must be well, and
at the end as at the beginning.

    hops.py [--build DIR] [--only REGEX] [--list]"""
import os
import sys
import uuid

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from lib import netns, suite, tool  # noqa: E402
from lib.process import find_moved, kill_tree, wait_for  # noqa: E402

HOPS = 10
RING = {"first": "10.77.14.1/24", "second": "10.77.14.2/24", "third": "10.77.14.3/24"}
# The others' clocks are far from the first's.
CLOCKS = {"first": (), "second": netns.OTHER_CLOCKS, "third": ()}
PROGRAMS = ("redis", "tcp_inside", "sysv_sem", "pty_session", "signals")


class Ring:
    def __init__(self, context, folder, name):
        self.folder, self.name = folder, name
        self.short = f"o{os.getpid()}"
        self.program = self.receiver = None
        self.network = netns.Network(self.short, RING)
        try:
            self.tool = tool.Tool(context.binary, folder)
            self.tool.boot = {host: str(uuid.uuid4()) for host in RING}
            self.keys = tool.Keys(context.binary, os.path.join(folder, "keys"), list(RING))
            self.program = cases.start(context, name, os.path.join(folder, "program"), self.network.enter("first"), f"{self.short}-first")
            self.program.ready()
            self.program.check()
        except BaseException:
            self.end()
            raise

    def hop(self, number):
        names = list(RING)
        here, there = names[number % len(names)], names[(number + 1) % len(names)]
        program, log = self.program, os.path.join(self.folder, f"receive-{number}.log")
        comm = program.comm()
        program.settle()
        before = cases.facts(program)
        program.remember()
        self.receiver = self.tool.receive(self.network, there, self.keys, prefix=CLOCKS[there], log=log)
        code, _, out = self.tool.send(self.network, here, there, self.keys, program.pid)
        if code != 0:
            raise tool.Failed(f"hop {number + 1}: send exited {code}:\n{out.strip()[-1200:]}\nreceive said:\n{tool.tail(log)}")
        program.reap_old(self.receiver.pid)
        pid = wait_for(lambda: find_moved(program.inner, comm), "the tree at the next host", 10)
        program.moved_to(pid, f"{self.short}-{there}")
        program.check()
        cases.compare(program, before, f"after hop {number + 1}", program.ignore_live)
        wait_for(lambda: self.receiver.poll() is not None, "migrate receive --once to end", 15)
        if self.receiver.returncode != 0:
            raise tool.Failed(f"hop {number + 1}: receive exited {self.receiver.returncode}:\n{tool.tail(log)}")

    def end(self):
        if self.program is not None:
            self.program.end()
        if self.receiver is not None and self.receiver.poll() is None:
            kill_tree(self.receiver.pid)
            self.receiver.wait(timeout=5)
        self.network.close()


def around(name):
    def case(context, folder):
        ring = Ring(context, folder, name)
        try:
            for number in range(HOPS):
                ring.hop(number)
        finally:
            ring.end()
    return case


CASES = {f"hops/{name}": around(name) for name in PROGRAMS}

if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mhops-"))

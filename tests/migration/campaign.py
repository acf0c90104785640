#!/usr/bin/env python3
"""Disturbs migrations at random: kills, a pulled cable, failed system calls; and checks the promises of the hand-over.

    campaign.py [--count N] [--seed N] [--case N] [-j N] [--list]

A case is a migration of the program of handover.py in which one or two things happen, drawn from the seed and its number:
some of our processes are killed at the same moment; the cable is pulled for a while; system calls (sync, rename, write, mmap,
fork, accept) of one of our processes fail from the n-th on, once, a few times, or until the operator sees to it
(tests/shim/failing_calls.cpp).
Afterwards exactly one copy runs, or both are held and `migrate resolve` says why; no number is missing or appears twice; nothing
is left behind. --case repeats one, as far as moments can be repeated."""
import argparse
import contextlib
import errno
import os
import random
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import faults  # noqa: E402
from fault_actions import MODES, TIMEOUTS  # noqa: E402
from lib import frame, parallel, tool  # noqa: E402
from lib.process import read, wait_for  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HOSTS = {"send": "source", "guardian-source": "source", "receive": "destination", "guardian-destination": "destination",
         "guardian-watch": "source"}
# Kind: errors, and about how many such calls a process makes at most in a migration.
CALLS = {"sync": ((errno.EIO, errno.ENOSPC), 30), "rename": ((errno.EIO, errno.ENOSPC), 12), "write": ((errno.ENOSPC, errno.EIO, errno.EINTR), 400),
         "mmap": ((errno.ENOMEM,), 60), "fork": ((errno.EAGAIN, errno.ENOMEM), 4), "accept": ((errno.EMFILE, errno.ECONNABORTED), 4)}
MIGRATION = 1.5  # seconds that an undisturbed one takes at most


def failing_calls(r):
    role = r.choice([x for x in HOSTS if x != "guardian-watch"] * 3 + ["guardian-watch"])
    kind = r.choice(list(CALLS))
    errors, most = CALLS[kind]
    first = round(most ** r.random())  # the first calls more often than the last
    count, error = r.choice((1, 1, 3, 1 << 40)), r.choice(errors)
    if error == errno.EINTR:
        count = min(count, 3)  # whoever is interrupted without end may try without end
    return HOSTS[role], f"{role}:{kind}:{first}:{count}:{error}"


def draw(seed, number):
    """{what: ...} of a case."""
    r = random.Random(f"{seed}-{number}")
    plan = {"mode": r.choice(MODES), "fail": [], "kill": None, "cut": None}
    for kind in r.choices(("fail", "kill", "cut"), (6, 3, 1), k=r.choice((1, 1, 2))):
        if kind == "fail":
            plan["fail"].append(failing_calls(r))
        elif kind == "kill":
            plan["kill"] = (r.uniform(0, MIGRATION), r.sample(list(HOSTS), r.choice((1, 1, 2, 2, 3, 5))))
        else:
            plan["cut"] = (r.uniform(0, MIGRATION), r.choice((0.3, 1, 6)))
    return plan


def told(plan):
    words = [plan["mode"]] + [f"{spec} fails" for _, spec in plan["fail"]]
    if plan["kill"]:
        words.append(f"{', '.join(plan['kill'][1])} killed after {plan['kill'][0]:.3f} s")
    if plan["cut"]:
        words.append(f"cut after {plan['cut'][0]:.3f} s for {plan['cut'][1]} s")
    return "; ".join(words)


class Disturbed(faults.Case):
    def __init__(self, context, folder, plan):
        self.plan, self.shim, self.happened = plan, context.shim, []
        super().__init__(context, folder, "campaign", "none", plan["mode"])

    def run(self):
        self.look_before()
        env_of = {host: {"MIGRATE_TEST_TIMEOUTS": TIMEOUTS, **self.preload(host)} for host in ("source", "destination")}
        try:
            self.start_agents(env_of)
        except tool.Failed as e:
            if self.sender or not any(spec.startswith("receive:") for _, spec in self.plan["fail"]):
                raise
            return f"the receiver did not start: {str(e)[:60]!r}"
        self.disturb()
        wait_for(lambda: self.sender.poll() is not None or self.supervise(), "migrate send to end", faults.SEND_LIMIT, 0.02)
        text = self.settle()
        self.happened += read(f"{self.folder}/failed").splitlines()
        return text

    def make_room(self):
        """What failed for ever works again: who was held up by it goes on."""
        super().make_room()
        with open(f"{self.folder}/failed.over", "w"):
            pass

    @staticmethod
    def may_leave_probes(code):
        """Killed within the one round trip in which they are there."""
        return code == -signal.SIGKILL

    def preload(self, host):
        specs = [spec for h, spec in self.plan["fail"] if h == host]
        return {"LD_PRELOAD": self.shim, "FAILING_CALLS": ",".join(specs), "FAILING_CALLS_LOG": f"{self.folder}/failed"} if specs else {}

    def disturb(self):
        started = time.monotonic()
        acts = {"kill": self.kill_some, "cut": self.cut_cable}
        todo = [(self.plan[what][0], act) for what, act in acts.items() if self.plan[what]]
        for moment, act in sorted(todo, key=lambda x: x[0]):
            time.sleep(max(0, moment - (time.monotonic() - started)))  # not a wait: the moment is what is tried
            act()

    def kill_some(self):
        """At the same moment: they are stopped first."""
        victims = [p for p in self.ours() if self.verb(p) in self.plan["kill"][1] and self.in_our_pid_namespace(p)]
        self.signal(signal.SIGSTOP, victims)
        self.kill(*victims)
        self.happened += [f"kill {len(victims)}"] * bool(victims)

    def cut_cable(self):
        self.happened += ["cut"] * (self.sender.poll() is None)
        self.network.cut("source")
        time.sleep(self.plan["cut"][1])  # not a wait: for so long it is pulled
        self.plug_in()


def one(context, number):
    """In the case's process."""
    folder, plan = os.path.join(context.top, str(number)), draw(context.seed, number)
    *result, case = frame.one_case(lambda: Disturbed(context, folder, plan), folder, (*faults.EXPECTED, parallel.TimeUp), note=f" [{told(plan)}]",
                                   tails=frame.logs("send.log", "receive.log", "commands.log", "failed"))
    return *result, len(case.happened) if case else 0


class Context:
    def __init__(self, o, top):
        self.binary = os.path.abspath(o.migrate or os.path.join(o.build, "migrate", "migrate"))
        self.workloads = os.path.abspath(o.workloads or os.path.join(o.build, "tests", "workloads"))
        self.shim = os.path.abspath(o.shim or os.path.join(o.build, "tests", "shim", "libfailing_calls.so"))
        self.top, self.seed, self.send_args = top, o.seed, []
        self.keys = tool.Keys(self.binary, os.path.join(top, "keys"), ["source", "destination"])


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"))
    p.add_argument("--migrate")
    p.add_argument("--workloads")
    p.add_argument("--shim")
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--case", type=int, action="append", default=[], help="only that one; may be repeated")
    p.add_argument("-j", "--jobs", type=int, default=2)
    p.add_argument("--list", action="store_true")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: look for remains case by case only")
    return p.parse_args()


def main():
    options = parse()
    numbers = options.case or list(range(options.count))
    if options.list:
        print("\n".join(f"{n}: {told(draw(options.seed, n))}" for n in numbers))
        return 0
    disturbed = 0
    with frame.run_of_cases(options, "mcmp-") as (top, counts):
        context = Context(options, top)
        if not os.path.exists(context.shim):
            print(f"FAIL {context.shim} is not there: run scripts/build")
            counts["FAIL"] += 1
            return frame.closing_line(counts)
        with contextlib.closing(parallel.run([(n,) for n in numbers], lambda job: one(context, *job), options.jobs, 150)) as cases:
            for (n,), result in cases:
                verdict, text, seconds, happened = result or ("FAIL", "the case's process died or hung", 0.0, 0)
                counts[verdict] += 1
                disturbed += happened > 0
                print(f"{verdict} {n} ({seconds:.1f} s): {text}", flush=True)
        # What does not happen proves nothing.
        if not options.case and disturbed * 3 < len(numbers):
            print(f"FAIL disturbances: only {disturbed} of {len(numbers)} cases were disturbed")
            counts["FAIL"] += 1
    print(f"   {disturbed} of {len(numbers)} were disturbed")
    return frame.closing_line(counts)


if __name__ == "__main__":
    frame.command(main)

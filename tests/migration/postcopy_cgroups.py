"""Cases of postcopy.py: who is killed with all its cgroup, as services are."""
import os
import re

from lib import cgroups
from lib.process import exists, kill_all, read, stat_fields, wait_for
from lib.skip import Skip
from lib.suite import expect
from postcopy_move import Move, quietly


class ServiceMove(Move):
    """Its receiver is a service, in a cgroup of its own; the program's is another, by the receiver's doing (`--cgroup`), or by that
    of who runs the program."""

    def __init__(self, context, folder, v2, mode, named):
        self.service = cgroups.Cgroup(f"postcopy-{os.getpid()}", v2)
        self.programs = cgroups.Cgroup(f"programs-{os.getpid()}", v2) if named else None
        options = ("--cgroup", f"/programs-{os.getpid()}") if named else ()
        super().__init__(context, folder, mode, receiver_options=options)
        if named:
            init = int(stat_fields(self.copy)[1])
            expect(self.programs.members() == {self.copy, init}, f"in its cgroup are {self.programs.members()}, not {self.copy} and {init}")
            return
        for pid in self.service.members():
            if quietly(lambda p: os.readlink(f"/proc/{p}/ns/pid") != os.readlink("/proc/self/ns/pid"), pid):
                self.service.let_out(pid)

    def prefix(self):
        return self.service.prefix()

    def close(self):
        super().close()
        self.service.close()
        if self.programs:
            expect(not self.programs.members() and not [n for n in os.listdir(self.programs.folder) if n.startswith("migrate-")],
                   "something is left in the program's cgroup")
            self.programs.close()


def service_killed(v2, named=False):
    """With all its processes, as the service's manager does it, or the kernel for want of memory. Those that hold the program's
    pages are elsewhere: they go on, with the feed that they have; when that is cut, too, the program waits until a receiver is
    there again. That one is killed alike."""
    def case(context, folder):
        move = ServiceMove(context, folder, v2, "postcopy", named)
        try:
            for feed_is_cut in (True, False):
                move.expect_feeding()
                wait_for(move.lazy_complete, "the lazy host", 10)
                wait_for(move.destination_agent, "an agent that takes the feed", 20)
                # Some of them end meanwhile, and others begin.
                wait_for(lambda: {*move.destination_agent(), *move.destination_guardian(), move.hosts.receivers["destination"].pid}
                         <= move.service.members(), "the receiver to be in its cgroup with all its processes", 5)
                inside = move.service.members()
                expect(not inside & {*move.lazy(), move.copy}, "what holds its pages is in the receiver's cgroup")
                move.service.kill()
                move.hosts.receivers.pop("destination").wait(10)
                expect(len(move.lazy()) == 3 and exists(move.copy), "what brings its pages went with the receiver")
                if feed_is_cut:
                    kill_all(move.lazy_daemon())
                    wait_for(lambda: '"event":"cut"' in read(move.log), "the cut to be noticed", 20)
                    expect(move.state("destination") == "GATE_OPEN" and exists(move.copy), "it did not wait for its pages")
                move.start_receiver()
            move.arrives()
        finally:
            move.close()
    return case


def seats_killed(v2):
    """The cgroups of those that hold its pages, one after the other: each time the two others go on, and make a third, in the cgroup
    that is free."""
    def case(context, folder):
        move = Move(context, folder, "postcopy")
        top = cgroups.top(v2)
        try:
            if top is None:
                raise Skip(f"no cgroup {'v2' if v2 else 'v1'} hierarchy for it is mounted")
            seats = [f"{top}/migrate-{move.session}-lazy-{seat}" for seat in range(3)]

            def all_there():
                there = [cgroups.members(seat) for seat in seats]
                return all(len(t) == 1 for t in there) and set.union(*there) == set(move.lazy()) and there
            for victim in (0, 1, 2, 2, 0):
                move.expect_feeding()
                before = wait_for(all_there, "one process in each cgroup", 10)
                for other in range(3):
                    of_other = read(f"/proc/{next(iter(before[other]))}/cgroup")
                    expect(len(re.findall(rf"-lazy-{other}$", of_other, re.M)) == of_other.count("-lazy-") > 0,
                           f"a process is in cgroups of several: {of_other}")
                cgroups.kill_members(seats[victim])
                wait_for(lambda v=victim, b=before: not b[v] & set(move.lazy()), "it to die", 5)
            wait_for(all_there, "one process in each cgroup", 10)
            move.arrives()
        finally:
            move.close()
    return case


CASES = {
    "cgroup/receiver-v2": service_killed(True),
    "cgroup/receiver-v1": service_killed(False),
    "cgroup/named-v2": service_killed(True, named=True),
    "cgroup/named-v1": service_killed(False, named=True),
    "cgroup/seats-v2": seats_killed(True),
    "cgroup/seats-v1": seats_killed(False),
}

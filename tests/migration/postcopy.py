#!/usr/bin/env python3
"""Post-copy, broken while pages are missing: whoever dies or is cut off, the program goes on with all its memory.

    postcopy.py [--only REGEX] [--keep]

A program of 64 MiB, whose pages it can tell from each other, is moved over a slow feed; while it runs at the destination
something is done to those who bring its pages. Afterwards it knows every byte, the source's tree is gone, both journals say DONE
(or LOST, where nothing helps), and nothing is left."""
import json
import os
import re
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import postcopy_shared  # noqa: E402
from lib import cgroups, hosts, programs, remains, suite, tool  # noqa: E402
from lib.process import all_pids, exists, kill_all, read, spawn, stat_fields, wait_for  # noqa: E402
from lib.skip import Skip  # noqa: E402
from lib.suite import expect  # noqa: E402

TIMEOUTS = {"MIGRATE_TEST_TIMEOUTS": "connect=3000,answer=5000,restore=10000,settle=2000"}
MIB = 64
SLOW = "12M"  # a second: some five seconds of feed


class Move:
    """One program on its way, in the case's process."""
    receiver_options = ()

    def __init__(self, context, folder, mode, workload=("memory", str(MIB)), options=("--bandwidth-limit", SLOW), env=None,
                 before_switch=None, once=False, program_prefix=(), receiver_options=()):
        """`before_switch`: called with this when the move has begun. `program_prefix`: of the program's command."""
        self.context, self.folder, self.mode, self.once = context, folder, mode, once
        self.options, self.env, self.before_switch = options, env or {}, before_switch
        self.hosts = hosts.Hosts(context.binary, folder, f"p{os.getpid()}", "10.77.90")
        self.receiver_options = receiver_options
        self.program = self.sender = None
        try:
            self.start_receiver()
            name, *arguments = workload
            self.program = programs.Workload(name, f"{context.workloads}/{name}", arguments, f"{folder}/program",
                                             [*self.hosts.enter("source"), *program_prefix], self.hosts.namespace("source"))
            self.program.ready()
            self.program.remember()
            self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self, via=None):
        """Sends it, to the address `via`; returns when it runs at the destination, and its pages follow."""
        self.old, self.log = self.program.pid, f"{self.folder}/send"
        self.sender = self.hosts.send(self.old, "source", self.log, ["--mode", self.mode, "--max-rounds", "1", *self.options],
                                      env={**TIMEOUTS, **self.env}, via=via)
        if self.before_switch:
            self.before_switch(self)
        wait_for(lambda: self.sender.poll() is not None or '"event":"gate-open"' in read(self.log), "the switch", 40, 0.005)
        expect(not self.sender.poll(), f"send ended: {tool.tail(self.log, 5)}")
        self.session = json.loads(next(line for line in read(self.log).splitlines() if '"event":"begin"' in line))["session"]
        self.copy = wait_for(lambda: hosts.find_copy(self.program.inner, f"{self.folder}/program", self.old), "the moved tree", 10)
        wait_for(lambda: "/migrate-" not in read(f"/proc/{self.copy}/cgroup"), "the copy to leave its gate", 10)

    def start_receiver(self, **env):
        self.hosts.receive("destination", f"{self.folder}/receive", env={**TIMEOUTS, **env}, prefix=self.prefix(), once=self.once,
                           options=self.receiver_options)

    def prefix(self):
        """Of the receiver's command."""
        return []

    # Who is who.

    def named(self, *words):
        """Our processes of this session whose command lines hold these."""
        def matches(pid):
            line = read(f"/proc/{pid}/cmdline").replace("\0", " ")
            return line.startswith("migrate ") and all(w in line for w in words) and (stat_fields(pid) or "Z")[0] != "Z"
        return [p for p in all_pids() if quietly(matches, p)]

    def lazy(self):
        return self.named("guardian-lazy", self.session)

    def kill_lazy(self):
        """All at once: none may follow another."""
        victims = self.lazy()
        for p in victims:
            quietly(os.kill, p, signal.SIGSTOP)
        kill_all(victims)

    def lazy_daemon(self):
        """The one with threads."""
        return [p for p in self.lazy() if quietly(lambda q: len(os.listdir(f"/proc/{q}/task")) > 1, p)]

    def children(self, verb, parent):
        return [p for p in self.named(verb) if int(stat_fields(p)[1]) == parent]

    def source_guardian(self):
        return self.children("guardian-source", self.sender.pid)

    def destination_agent(self):
        daemon = self.hosts.receivers["destination"].pid
        return [p for p in all_pids() if quietly(lambda q: int(stat_fields(q)[1]) == daemon and stat_fields(q)[0] != "Z", p)]

    def destination_guardian(self):
        return [g for agent in self.destination_agent() for g in self.children("guardian-destination", agent)]

    def is_feeding(self):
        return exists(self.old) and not self.state("destination") == "WHOLE"

    def state(self, side):
        text = read(f"{self.folder}/state-{side}/{self.session}.{side}.journal")
        return json.loads(text)["state"] if text else ""

    # How it ends.

    def arrives(self, code=0):
        """All of it, whoever sees to that."""
        wait_for(lambda: self.state("destination") in ("WHOLE", "DONE"), "the copy to be whole", 60)
        wait_for(lambda: not exists(self.old), "the tree at the source to be gone", 40)
        wait_for(lambda: self.sender.poll() is not None, "send to end", 20)
        if code is not None:
            expect(self.sender.returncode == code, f"send exited {self.sender.returncode}: {tool.tail(self.log, 5)}")
        wait_for(lambda: self.state("source") == "DONE" and self.state("destination") == "DONE", "both journals to say DONE", 20)
        wait_for(lambda: not self.lazy(), "the lazy host to leave", 10)
        self.program.reap_old(*[p.pid for p in (*self.hosts.receivers.values(), self.hosts.clocks, self.sender)])
        self.program.moved_to(self.copy, self.hosts.namespace("destination"))
        self.program.check()
        wait_for(lambda: not self.named("guardian-watch", self.session), "the watches to leave", 10)

    def close(self):
        for path in ("send", "receive"):
            if os.path.exists(f"{self.folder}/{path}"):
                with open(f"{self.folder}/{path}.said", "w") as f:
                    f.write(read(f"{self.folder}/{path}"))
        if self.sender and self.sender.poll() is None:
            self.sender.kill()
            self.sender.wait()
        if self.program:
            copy = hosts.find_copy(self.program.inner, f"{self.folder}/program", self.program.pid)
            if copy:
                kill_all([copy])
            self.program.end()
        self.hosts.close()
        if hasattr(self, "session"):
            self.kill_lazy()
        kill_all(self.named(self.folder))
        if hasattr(self, "session"):
            if sys.exc_info()[0] is None:
                wait_for(lambda: not remains.cgroups_of([self.session]), "its cgroups to be gone", 10)
            remains.sweep_cgroups([self.session])


def quietly(function, *args):
    try:
        return function(*args)
    except (OSError, IndexError, ValueError, TypeError):
        return False


def broken(act, mode="postcopy", **ending):
    def case(context, folder):
        move = Move(context, folder, mode)
        try:
            act(move)
            move.arrives(**ending)
        finally:
            move.close()
    return case


def kill(who, again=0):
    """SIGKILL, `again` times more, each when those who take over are there."""
    def act(move):
        for _ in range(again + 1):
            expect(move.is_feeding(), "it was whole before anything was done")
            victims = wait_for(lambda: getattr(move, who)(), f"the {who}", 10, 0.02)
            kill_all(victims[:1])
            wait_for(lambda: not quietly(lambda p: (stat_fields(p) or "Z")[0] != "Z", victims[0]), "it to die", 5, 0.01)
    return act


def kill_sender(move):
    expect(move.is_feeding(), "it was whole before anything was done")
    move.sender.kill()


def cut(times):
    def act(move):
        for _ in range(times):
            expect(move.is_feeding(), "it was whole before anything was done")
            move.hosts.network.cut("source")
            wait_for(lambda: read(move.log).count('"event":"cut"') > 0, "the cut to be noticed", 40)
            move.hosts.network.cut("source", up=True)
    return act


def kill_receiver(move):
    expect(move.is_feeding(), "it was whole before anything was done")
    victims = [*move.destination_agent(), move.hosts.receivers["destination"].pid]
    kill_all(victims)
    move.hosts.receivers.pop("destination").wait(10)
    move.start_receiver()


def holders(move):
    return [p for p in move.lazy() if p not in move.lazy_daemon()]


Move.holders = holders


def kill_all_lazy(context, folder):
    """Nothing helps against the death of all who hold its pages: it must not go on with zeros, and both sides say so."""
    move = Move(context, folder, "postcopy")
    try:
        expect(move.is_feeding(), "it was whole before anything was done")
        move.kill_lazy()
        wait_for(lambda: move.state("destination") == "LOST", "the destination to say LOST", 20)
        wait_for(lambda: not exists(move.copy), "the program without a part of its memory to be ended", 10)
        wait_for(lambda: move.sender.poll() is not None, "send to end", 40)
        expect(move.sender.returncode == 3, f"send exited {move.sender.returncode}: {tool.tail(move.log, 5)}")
        expect(exists(move.old), "the only copy that is left was killed")
        code, out = move.hosts.tool.resolve(move.hosts.network, "source", "destination", move.hosts.keys, pid=move.old)
        expect(code == 3 and re.search("lost", out), f"resolve exited {code}: {out[-500:]}")
        end_by_force(move)
    finally:
        move.close()


def all_dead_there(context, folder):
    """Nobody is left at the destination who would tidy up: `resolve` does, and says so. Of a session that it does not know, it says
    what is left; and nothing of one that lives."""
    move = Move(context, folder, "postcopy")
    top = cgroups.top(True) or cgroups.top(False)
    stray = f"{top}/migrate-{'5' * 32}-lazy-0"
    resolve = lambda: move.hosts.tool.resolve(move.hosts.network, "destination", "source", move.hosts.keys)
    try:
        expect(move.is_feeding(), "it was whole before anything was done")
        code, out = resolve()
        expect(code == 0 and f"{move.session}: " not in out and move.lazy(), f"resolve of a session that lives exited {code}: {out[-500:]}")
        victims = [*move.destination_guardian(), *move.named("guardian-watch destination ", move.session), *move.destination_agent(),
                   move.hosts.receivers["destination"].pid]
        kill_all([p for p in victims if exists(p)])
        move.hosts.receivers.pop("destination").wait(10)
        move.kill_lazy()
        expect(os.path.isdir(f"{top}/migrate-{move.session}-lazy-0"), "somebody has tidied up: it proves nothing")
        os.mkdir(stray)
        expect("5" * 32 not in resolve()[1], "it names one that may be of a session that is only beginning")
        os.utime(stray, (0, 0))
        code, out = resolve()
        expect(f"session {move.session}: the cgroups that the processes which brought its pages had left are removed" in out,
               f"resolve exited {code}: {out[-500:]}")
        expect(re.search(rf"session 5+: nobody is in its cgroup {stray}, and \S+ has no journal of it; .* remove them",
                         out), f"of the stray one it says {out[-500:]}")
        expect(not os.path.exists(f"{top}/migrate-{move.session}-lazy-0") and os.path.exists(stray), "it removed the wrong ones")
        expect(move.state("destination") == "LOST" and not exists(move.copy), "it goes on with zeros")
        move.start_receiver()
        wait_for(lambda: move.sender.poll() is not None, "send to end", 40)
        end_by_force(move)
    finally:
        if os.path.isdir(stray):
            os.rmdir(stray)
        move.close()


def end_by_force(move):
    """What the operator does with a copy that nobody can go on with."""
    code, out = move.hosts.tool.resolve(move.hosts.network, "source", "destination", move.hosts.keys, "--force-kill", move.session,
                                        pid=move.old)
    expect(not exists(move.old), f"--force-kill left the frozen copy ({code}): {out[-500:]}")


def destination_restarted(context, folder):
    """Everything there dies, and comes back with another boot id: the pages that came are gone, and the source's tree is the only
    copy that is left. It must not be killed."""
    move = Move(context, folder, "postcopy")
    try:
        expect(move.is_feeding(), "it was whole before anything was done")
        victims = [*move.destination_guardian(), *move.destination_agent(), *move.lazy(), *move.named("guardian-watch destination ", move.session),
                   move.hosts.receivers["destination"].pid, move.copy]
        kill_all([p for p in victims if exists(p)])
        move.hosts.receivers.pop("destination").wait(10)
        move.start_receiver(MIGRATE_FAKE_BOOT_ID="another")
        wait_for(lambda: move.sender.poll() is not None, "send to end", 60)
        expect(move.sender.returncode == 3, f"send exited {move.sender.returncode}: {tool.tail(move.log, 5)}")
        expect(exists(move.old), "the only copy that is left was killed")
        expect(move.state("destination") == "LOST", f"the destination says {move.state('destination')}")
        end_by_force(move)
    finally:
        move.close()


def source_tree_killed(context, folder):
    """What was still here is lost: the destination is told, and nobody tries for ever."""
    move = Move(context, folder, "postcopy")
    try:
        expect(move.is_feeding(), "it was whole before anything was done")
        os.kill(move.old, signal.SIGKILL)
        wait_for(lambda: move.sender.poll() is not None, "send to end", 40)
        expect(move.sender.returncode == 3, f"send exited {move.sender.returncode}: {tool.tail(move.log, 5)}")
        wait_for(lambda: move.state("destination") == "LOST" and move.state("source") == "LOST", "both journals to say LOST", 40)
        wait_for(lambda: not move.lazy(), "the lazy host to leave", 10)
    finally:
        move.close()


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
                expect(move.is_feeding(), "it was whole before anything was done")
                wait_for(lambda: len(move.lazy()) == 3 and move.lazy_daemon(), "the lazy host", 10)
                agents = wait_for(move.destination_agent, "an agent that takes the feed", 20)
                inside = move.service.members()
                expect({*agents, *move.destination_guardian(), move.hosts.receivers["destination"].pid} <= inside,
                       "the receiver is not in its cgroup with all its processes")
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
                expect(move.is_feeding(), "it was whole before anything was done")
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


def once_is_once(context, folder):
    """A receiver of one migration that waits until the copy is whole has no place for another one, whose agent is gone or not."""
    move = Move(context, folder, "postcopy", once=True)
    other = None
    try:
        expect(move.is_feeding(), "it was whole before anything was done")
        kill("destination_agent")(move)
        other = programs.Workload("memory", f"{context.workloads}/memory", ["1"], f"{folder}/other", move.hosts.enter("source"),
                                  move.hosts.namespace("source"))
        other.ready()
        log = f"{folder}/send-other"
        second = move.hosts.send(other.pid, "source", log, ["--mode", "precopy"], env=TIMEOUTS)
        wait_for(lambda: second.poll() is not None, "the second send to end", 30)
        expect(second.returncode == 2 and "--once" in read(log), f"the second send exited {second.returncode}: {tool.tail(log, 3)}")
        expect(move.is_feeding(), "it was whole before the second one came")
        move.arrives()
        wait_for(lambda: move.hosts.receivers["destination"].poll() is not None, "the receiver to end", 20)
    finally:
        if other:
            other.end()
        move.close()


def huge_without_guardian(context, folder):
    """Who made the list of them dies while pages are missing."""
    move = Move(context, folder, "postcopy", ("huge_pages", "16"), ("--bandwidth-limit", "5M"))
    try:
        kill("destination_guardian")(move)
        expect(move.is_feeding(), "it was whole before its guardian was killed")
        move.arrives()
        wait_for(lambda: huge_bytes(move.copy) == 16 << 20, "huge pages to be made again", 30, 0.05)
        wait_for(lambda: not move.named("guardian-huge", move.session), "who made them to leave", 10)
    finally:
        move.close()


def nothing_late(context, folder):
    """Rounds that converge leave nothing for later; that the copy is whole is known before its gate opens, and must not be
    forgotten until then."""
    move = Move.__new__(Move)
    move.context, move.folder, move.program, move.sender, move.once = context, folder, None, None, False
    move.hosts = hosts.Hosts(context.binary, folder, f"p{os.getpid()}", "10.77.90")
    try:
        move.start_receiver()
        move.program = programs.Workload("memory", f"{context.workloads}/memory", ["16", "10"], f"{folder}/program",
                                         move.hosts.enter("source"), move.hosts.namespace("source"))
        move.program.ready()
        move.program.remember()
        move.old, move.log = move.program.pid, f"{folder}/send"
        move.sender = move.hosts.send(move.old, "source", move.log, ["--mode", "auto", "--allow-postcopy", "--max-downtime", "1000"],
                                      env={**TIMEOUTS, "MIGRATE_FAULT": "source-agent.ready:sleep"})
        wait_for(lambda: move.sender.poll() is not None, "send to end", 60)
        expect(move.sender.returncode == 0, f"send exited {move.sender.returncode}: {tool.tail(move.log, 5)}")
        expect('"event":"switch"' not in read(move.log), "pages came late although the rounds converged")
        move.session = json.loads(next(line for line in read(move.log).splitlines() if '"event":"begin"' in line))["session"]
        move.copy = wait_for(lambda: hosts.find_copy(move.program.inner, f"{folder}/program", move.old), "the moved tree", 10)
        move.arrives()
    finally:
        move.close()


def undisturbed(mode):
    """What comes late is what was written since the last round, and each page of it comes once, but for those that were on
    their way when they were asked for."""
    def case(context, folder):
        move = Move(context, folder, mode)
        try:
            move.arrives()
            seen = {e["event"]: e for e in tool.events(read(move.log)) if "event" in e}
            late, whole = seen["switch"]["pages"], seen["whole"]
            expect(whole["pages_pushed"] <= late <= whole["pages_pushed"] + whole["pages_requested"],
                   f"{late} pages were late, {whole['pages_pushed']} were pushed and {whole['pages_requested']} asked for")
            if mode == "hybrid":
                expect(late <= seen["decide"]["dirty_pages"] + seen["freeze"]["pages"] + 2000,
                       f"{late} pages came late, {seen['decide']['dirty_pages']} were written since the last round")
            else:
                expect(late > MIB * 256, f"only {late} pages came late")
        finally:
            move.close()
    return case


def stopped_at(processes):
    """The first of these that stands at a fault point."""
    return next((p for p in processes if (stat_fields(p) or "Z")[0] == "T"), None)


def left(why, act, *options):
    """send ends in the middle of the feed and says why; the watch goes on, with the limit that send was given."""
    def case(context, folder):
        move = Move(context, folder, "postcopy", options=("--bandwidth-limit", SLOW, *options))
        try:
            act(move)
            wait_for(lambda: move.sender.poll() is not None, "send to end", 30)
            expect(move.sender.returncode == 3, f"send exited {move.sender.returncode}: {tool.tail(move.log, 5)}")
            said = [e for e in tool.events(read(move.log)) if e["event"] == "left"]
            expect(len(said) == 1 and why in said[0]["text"] and "are still in the frozen tree here" in said[0]["text"] and
                   f"migrate resolve {move.session}" in said[0]["text"], f"send did not say how it stands: {tool.tail(move.log, 5)}")
            expect(exists(move.old) and move.state("source") == "COMMITTED", f"the source is {move.state('source')}")
            entry = json.loads(read(f"{folder}/state-source/{move.session}.source.journal"))
            expect(entry["feed"]["bandwidth_limit"] == 12_000_000, f"the journal says {entry.get('feed')}")
            if move.hosts.receivers["destination"].poll() is None:
                os.kill(move.hosts.receivers["destination"].pid, signal.SIGCONT)
            wait_for(lambda: move.state("destination") in ("WHOLE", "DONE"), "the copy to be whole", 60)
            switch = next(e for e in tool.events(read(move.log)) if e["event"] == "switch")
            least = switch["pages"] * 4096 / 12e6 / 2  # what is asked for is not limited
            expect(time.time() - switch["time"] > least, "the watch knows no limit")
            move.arrives(code=3)
        finally:
            move.close()
    return case


def lose_destination(move):
    """The feed is cut, and nobody answers who wants to connect again."""
    expect(move.is_feeding(), "it was whole before anything was done")
    move.hosts.receivers["destination"].send_signal(signal.SIGSTOP)
    kill_all(move.lazy_daemon()[:1])


def interrupt(number):
    def act(move):
        expect(move.is_feeding(), "it was whole before anything was done")
        for _ in range(3):
            move.sender.send_signal(number)
    return act


def came_late(log):
    """Pages in the order in which they came to the destination, by its debug log."""
    runs = re.findall(r"came late: ([0-9a-f]+) (\d+)$", read(log), re.MULTILINE)
    return [int(start, 16) + i * 4096 for start, pages in runs for i in range(int(pages))]


def exact(context, folder):
    """What comes late is what was written since the last round, page by page, and no page comes twice; what was written last comes
    first. The program writes nothing else, but what its C library needs for its heartbeat."""
    place = f"{folder}/program"

    def write(name):
        open(f"{place}/{name}", "w").close()
        wait_for(lambda: os.path.exists(f"{place}/{name}.done"), "the program to have written", 20)

    def drive(move):
        agent = wait_for(lambda: stopped_at([move.sender.pid]), "the end of the round", 20)
        guardian = move.source_guardian()[0]
        os.kill(guardian, signal.SIGSTOP)  # so that nobody freezes the tree
        write("once")
        os.kill(agent, signal.SIGCONT)
        wait_for(lambda: '"event":"decide"' in read(move.log), "the last scan", 20)
        write("last")
        os.kill(guardian, signal.SIGCONT)
    move = Move(context, folder, "hybrid", ("late_writes", "16"), ("--streams", "1"), {"MIGRATE_FAULT": "source-agent.round-sent:stop-self"},
                {"MIGRATE_DEBUG": "1"}, drive)
    try:
        move.arrives()
        (start, end, *once), (_, _, *last) = ([int(x, 16) for x in read(f"{place}/{n}.done").split()] for n in ("once", "last"))
        once, last = set(once), set(last)
        came = came_late(f"{folder}/receive")
        inside, others = [p for p in came if start <= p < end], [p for p in came if not start <= p < end]
        expect(len(once) > 600 and len(last) > 200, f"the program wrote {len(once)} and {len(last)} pages")
        expect(set(inside) == once | last, f"{len(set(inside) - once - last)} pages came late that were not written, "
                                           f"{len((once | last) - set(inside))} that were did not")
        expect(len(inside) == len(set(inside)), f"{len(inside) - len(set(inside))} pages came twice")
        expect(len(others) <= 64, f"{len(others)} other pages came late")
        pages = next(e["pages"] for e in tool.events(read(move.log)) if e.get("event") == "switch")
        expect(len(set(came)) == pages, f"{len(set(came))} pages came late, the source said {pages}")
        expect(set(inside[:len(last)]) == last, f"of the {len(last)} pages written last "
                                                f"{len(last & set(inside[:len(last)]))} came first")
    finally:
        move.close()


def huge_bytes(pid):
    return sum(int(line.split()[1]) << 10 for line in read(f"/proc/{pid}/smaps").splitlines() if line.startswith("AnonHugePages:"))


def huge(mode):
    """What was huge pages at the source is so again soon, without advice by which the kernel would do it; nothing else is, and
    nobody is left."""
    def case(context, folder):
        move = Move(context, folder, mode, ("huge_pages", "16"), ())
        try:
            move.arrives()
            wait_for(lambda: huge_bytes(move.copy) >= 16 << 20, "huge pages to be made again", 30, 0.05)
            wait_for(lambda: not move.named("guardian-huge", move.session), "who made them to leave", 10)
            expect(huge_bytes(move.copy) == 16 << 20, f"{huge_bytes(move.copy) >> 20} MiB are in huge pages now")
            move.program.check()
        finally:
            move.close()
    return case


def moved_again(context, folder):
    """A tree that is not whole is not moved on; when it is, it is."""
    move = Move(context, folder, "postcopy")
    try:
        log = f"{folder}/back"
        move.hosts.receive("source", f"{folder}/receive-source", env=TIMEOUTS)
        back = move.hosts.send(move.copy, "destination", log, ["--mode", "precopy"], env=TIMEOUTS)
        wait_for(lambda: back.poll() is not None, "the early move to end", 30)
        expect(back.returncode == 2, f"the move of a tree that is not whole exited {back.returncode}: {tool.tail(log, 5)}")
        expect(re.search(rf"still coming from 10\.77\.90\.1:\d+ \(source\): session {move.session}, \d+ pages are missing; "
                         f"try again when it is whole; `migrate resolve {move.session}` says when", read(log)), f"it was refused otherwise: {tool.tail(log, 5)}")
        code, out = move.hosts.tool.resolve(move.hosts.network, "destination", "source", move.hosts.keys, move.session)
        expect(code == 0 and re.search(r"runs here, and [1-9]\d* pages of it are still at the source", out), f"resolve exited {code}: {out[-300:]}")
        os.mkdir(f"{folder}/images")
        dump = spawn([context.binary, "dump", "-t", str(move.copy), "-D", f"{folder}/images", "-o", "-"], log=f"{folder}/dump",
                     prefix=move.hosts.enter("destination"))
        wait_for(lambda: dump.poll() is not None, "the early dump to end", 30)
        expect(dump.returncode == 2 and "pages another process brings" in read(f"{folder}/dump"),
               f"the dump of a tree that is not whole exited {dump.returncode}: {tool.tail(f'{folder}/dump', 5)}")
        expect(move.is_feeding(), "it was whole before it was to be moved on")
        move.arrives()
        again = move.hosts.send(move.copy, "destination", f"{folder}/again", ["--mode", "precopy"], env=TIMEOUTS)
        wait_for(lambda: again.poll() is not None, "the move of a whole tree to end", 40)
        expect(again.returncode == 0, f"the move of a whole tree exited {again.returncode}: {tool.tail(f'{folder}/again', 5)}")
        last = wait_for(lambda: hosts.find_copy(move.program.inner, f"{folder}/program", move.copy), "the tree that was moved on", 10)
        move.program.moved_to(last, move.hosts.namespace("source"))
        move.program.check()
    finally:
        move.close()


CASES = {
    "undisturbed/postcopy": undisturbed("postcopy"),
    "undisturbed/hybrid": undisturbed("hybrid"),
    "hybrid/exact": exact,
    "huge/postcopy": huge("postcopy"),
    "huge/hybrid": huge("hybrid"),
    "huge/precopy": huge("precopy"),
    "huge/guardian-killed": huge_without_guardian,
    "moved-again": moved_again,
    "cut": broken(cut(1)),
    "left/recover-timeout": left("the destination was not reached for 1 s", lose_destination, "--recover-timeout", "1"),
    "left/interrupt": left("interrupted", interrupt(signal.SIGINT)),
    "left/terminate": left("interrupted", interrupt(signal.SIGTERM)),
    "kill/lazy-daemon": broken(kill("lazy_daemon")),
    "kill/lazy-daemon-again": broken(kill("lazy_daemon", 4)),
    "kill/holder": broken(kill("holders", 4)),
    "kill/source-agent": broken(kill_sender, code=None),
    "kill/source-guardian": broken(kill("source_guardian")),
    "kill/destination-agent": broken(kill("destination_agent")),
    "kill/destination-guardian": broken(kill("destination_guardian")),
    "kill/receiver": broken(kill_receiver),
    "kill/all-lazy": kill_all_lazy,
    "kill/all-there": all_dead_there,
    "kill/source-tree": source_tree_killed,
    "cgroup/receiver-v2": service_killed(True),
    "cgroup/receiver-v1": service_killed(False),
    "cgroup/named-v2": service_killed(True, named=True),
    "cgroup/named-v1": service_killed(False, named=True),
    "cgroup/seats-v2": seats_killed(True),
    "cgroup/seats-v1": seats_killed(False),
    "once": once_is_once,
    "restarted/destination": destination_restarted,
    **postcopy_shared.cases(Move, kill, cut, kill_sender),
    "nothing-late": nothing_late,
}


if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mpc-"))

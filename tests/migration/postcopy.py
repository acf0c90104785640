#!/usr/bin/env python3
"""Post-copy, broken while pages are missing: whoever dies or is cut off, the program goes on with all its memory.

    postcopy.py [--only REGEX] [--keep]

A program of 64 MiB, whose pages it can tell from each other, is moved over a slow feed; while it runs at the destination
something is done to those who bring its pages. Afterwards it knows every byte, the source's tree is gone, both journals say DONE
(or LOST, where nothing helps), and nothing is left."""
import json
import os
import re
import shutil
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import postcopy_cgroups  # noqa: E402
import postcopy_forced  # noqa: E402
import postcopy_shared  # noqa: E402
from lib import cgroups, hosts, programs, remains, suite, tool  # noqa: E402
from lib.process import all_pids, exists, kill_all, read, run, spawn, stat_fields, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402
from postcopy_move import MIB, SLOW, TIMEOUTS, Move, cut, kill, kill_receiver, kill_sender, quietly  # noqa: E402


def broken(act, mode="postcopy", **ending):
    def case(context, folder):
        move = Move(context, folder, mode)
        try:
            act(move)
            move.arrives(**ending)
        finally:
            move.close()
    return case


def kill_all_lazy(context, folder):
    """Nothing helps against the death of all who hold its pages: it must not go on with zeros, and both sides say so."""
    move = Move(context, folder, "postcopy")
    try:
        move.expect_feeding()
        move.kill_lazy()
        wait_for(lambda: move.state("destination") == "LOST", "the destination to say LOST", 20)
        wait_for(lambda: not exists(move.copy), "the program without a part of its memory to be ended", 10)
        move.send_ends(3)
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
        move.expect_feeding()
        code, out = resolve()
        expect(code == 0 and f"{move.session}: " not in out and move.lazy(), f"resolve of a session that lives exited {code}: {out[-500:]}")
        victims = [*move.destination_guardian(), *move.named("guardian-watch destination ", move.session), *move.destination_agent(),
                   move.hosts.receivers["destination"].pid]
        kill_all([p for p in victims if exists(p)])
        move.hosts.receivers.pop("destination").wait(10)
        move.kill_lazy()
        expect(os.path.isdir(f"{top}/migrate-{move.session}-lazy-0"), "somebody has tidied up: it proves nothing")
        os.mkdir(stray)
        first = resolve()[1]
        expect("5" * 32 not in first, "it names one that may be of a session that is only beginning")
        os.utime(stray, (0, 0))
        code, out = resolve()
        out = first + out
        expect(f"session {move.session}: the cgroups that the processes which brought its pages had left are removed" in out,
               f"resolve exited {code}: {out[-500:]}")
        expect(re.search(rf"session 5+: nobody is in its cgroup {stray}, and \S+ has no journal of it; .* remove them: rmdir {stray[:-1]}\?",
                         out), f"of the stray one it says {out[-500:]}")
        expect(not os.path.exists(f"{top}/migrate-{move.session}-lazy-0") and os.path.exists(stray), "it removed the wrong ones")
        expect(move.state("destination") == "LOST" and not exists(move.copy), "it goes on with zeros")
        move.start_receiver()
        move.send_ends(None)
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


def killed_by_force(context, folder):
    """The operator kills the frozen copy before the destination has all of it: that is told, and nobody waits for ever."""
    move = Move(context, folder, "postcopy")
    try:
        interrupt(signal.SIGINT)(move)
        move.send_ends(3)
        kill_all([*move.named("guardian-watch source ", move.session), *move.named("guardian-source ", move.session)])
        end_by_force(move)
        wait_for(lambda: move.state("destination") == "LOST", "the destination to say LOST", 20)
        wait_for(lambda: not move.lazy(), "the lazy host to leave", 10)
        code, out = move.hosts.tool.resolve(move.hosts.network, "source", "destination", move.hosts.keys, move.session)
        expect(code == 0 and "runs at the destination" not in out, f"resolve afterwards exited {code}: {out[-500:]}")
    finally:
        move.close()


def destination_restarted(context, folder):
    """Everything there dies, and comes back with another boot id: the pages that came are gone, and the source's tree is the only
    copy that is left. It must not be killed."""
    move = Move(context, folder, "postcopy")
    try:
        move.expect_feeding()
        victims = [*move.destination_guardian(), *move.destination_agent(), *move.lazy(), *move.named("guardian-watch destination ", move.session),
                   move.hosts.receivers["destination"].pid, move.copy]
        kill_all([p for p in victims if exists(p)])
        move.hosts.receivers.pop("destination").wait(10)
        move.start_receiver(MIGRATE_FAKE_BOOT_ID="another")
        move.send_ends(3, 60)
        expect(exists(move.old), "the only copy that is left was killed")
        expect(move.state("destination") == "LOST", f"the destination says {move.state('destination')}")
        end_by_force(move)
    finally:
        move.close()


def source_tree_killed(context, folder):
    """What was still here is lost: the destination is told, and nobody tries for ever."""
    move = Move(context, folder, "postcopy")
    try:
        move.expect_feeding()
        os.kill(move.old, signal.SIGKILL)
        move.send_ends(3)
        wait_for(lambda: move.state("destination") == "LOST" and move.state("source") == "LOST", "both journals to say LOST", 40)
        wait_for(lambda: not move.lazy(), "the lazy host to leave", 10)
    finally:
        move.close()


CHAIN = 20  # MiB a task


def task_killed(which, agent_dies=False):
    """One task of the frozen tree is killed, and what was missing of it is lost with it: who touches that gets SIGBUS, all others
    have every page, and both sides say so. `which`: 0 is the root. `agent_dies`: somebody else has to find out."""
    def case(context, folder):
        move = Move(context, folder, "postcopy", ("chain", str(CHAIN), str(1 << which)))
        try:
            # What a task needs to tell of lost pages must have come.
            warm = lambda: [int(n) for n in read(f"{folder}/program/warm").split()]
            before = warm()
            wait_for(lambda: len(warm()) == 3 and all(n > b + 5 for n, b in zip(warm(), before)), "all tasks to be warm", 20)
            move.expect_feeding()
            victim = move.old
            for _ in range(which):
                victim = next(p for p in all_pids() if quietly(lambda q: int(stat_fields(q)[1]), p) == victim)
            if agent_dies:
                move.sender.kill()
            os.kill(victim, signal.SIGKILL)
            move.arrives(code=None if agent_dies else 0)
            lost = [int(n) for n in read(f"{folder}/program/lost").split()]
            expect(lost[which] > 100 and sum(lost) == lost[which], f"pages lost of each task: {lost}")
            if not agent_dies:
                expect("was killed here" in read(move.log), f"send does not say what was killed: {tool.tail(move.log, 8)}")
                whole = next(e for e in tool.events(read(move.log)) if e.get("event") == "whole")
                expect(0 < whole["pages_lost"] <= CHAIN * 256 + 600, f"send counts {whole['pages_lost']} lost pages, there are {lost}")
            told = read(f"{folder}/state-destination/{move.session}.destination.journal")
            expect("given_up" in told or "killed at the source" in read(f"{folder}/receive"), "the destination does not say what is lost")
        finally:
            move.close()
    return case


def left_alone(folder_gone):
    """The copy is dead, and so is everybody at the destination but those who brought its pages: they leave. `folder_gone`: even the
    journals are; else they write down how it ended."""
    def case(context, folder):
        move = Move(context, folder, "postcopy")
        try:
            move.expect_feeding()
            move.sender.send_signal(signal.SIGSTOP)  # nobody comes again, to see what is left
            victims = [*move.named("guardian-watch destination ", move.session), *move.destination_guardian(), *move.destination_agent(),
                       move.hosts.receivers["destination"].pid]
            kill_all([p for p in victims if exists(p)])
            move.hosts.receivers.pop("destination").wait(10)
            if folder_gone:
                shutil.rmtree(f"{folder}/state-destination")
            expect(len(move.lazy()) == 3, "the lazy host is gone, while pages are missing")
            os.kill(move.copy, signal.SIGKILL)
            wait_for(lambda: not move.lazy(), "the lazy host to leave", 10)
            move.sender.send_signal(signal.SIGCONT)
            expect(os.path.exists(f"{folder}/state-destination") != folder_gone, "somebody made the folder anew")
            if folder_gone:
                kill_all([*move.source_guardian(), *move.named("guardian-watch source ", move.session)])
                move.sender.kill()
                code, out = move.hosts.tool.resolve(move.hosts.network, "source", "destination", move.hosts.keys, pid=move.old)
                expect(code == 3 and out.count("refused") == 1, f"resolve exited {code}, and does not say once why: {out[-500:]}")
                end_by_force(move)
                return remains.sweep_cgroups([move.session])  # `resolve` would name them
            expect(move.state("destination") == "WHOLE", f"the destination says {move.state('destination')}")
            move.start_receiver()
            move.send_ends(0)
            wait_for(lambda: not exists(move.old), "the tree at the source to be gone", 20)
        finally:
            move.close()
    return case


def once_is_once(context, folder):
    """A receiver of one migration that waits until the copy is whole has no place for another one, whose agent is gone or not."""
    move = Move(context, folder, "postcopy", once=True)
    other = None
    try:
        move.expect_feeding()
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


class Converging(Move):
    """Its rounds leave nothing for later."""

    def begin(self, via=None):
        self.old, self.log = self.program.pid, f"{self.folder}/send"
        self.sender = self.hosts.send(self.old, "source", self.log, ["--mode", self.mode, *self.options], env={**TIMEOUTS, **self.env})
        self.send_ends(0, 60)
        expect('"event":"switch"' not in read(self.log), "pages came late although the rounds converged")
        self.find_copy()


def nothing_late(context, folder):
    """That the copy is whole is known before its gate opens, and must not be forgotten until then."""
    move = Converging(context, folder, "auto", ("memory", "16", "10"), ("--allow-postcopy", "--max-downtime", "1000"),
                      {"MIGRATE_FAULT": "source-agent.ready:sleep"})
    try:
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
            move.send_ends(3, 30)
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
            there = read(f"{folder}/receive")
            if why == "interrupted":
                expect("ended the feed of pages: `migrate send` was interrupted there; another process goes on" in there and
                       "without a word" not in there, f"the destination does not know why the feed ended: {there[-600:]}")
            expect("has all its memory here" in there, f"the receiver does not say that it is whole: {there[-600:]}")
        finally:
            move.close()
    return case


def lose_destination(move):
    """The feed is cut, and nobody answers who wants to connect again."""
    move.expect_feeding()
    move.hosts.receivers["destination"].send_signal(signal.SIGSTOP)
    kill_all(move.lazy_daemon()[:1])


def interrupt(number):
    def act(move):
        move.expect_feeding()
        for _ in range(3):
            move.sender.send_signal(number)
    return act


def resolved_as_told(context, folder):
    """`migrate resolve SESSION`, as send says when it leaves: that the destination's certificate carries another name than its address
    was told to send, and need not be told again."""
    move = Move(context, folder, "postcopy")
    try:
        interrupt(signal.SIGINT)(move)
        wait_for(lambda: move.sender.poll() is not None, "send to end", 30)
        kill_all(move.named("guardian-watch source ", move.session))
        expect(move.state("destination") == "GATE_OPEN", "it was whole before anybody was asked")
        command, prefix = move.hosts.tool.resolve_command(move.hosts.network, "source", "destination", move.hosts.keys, move.session, pid=move.old)
        at = command.index("--tls-name")
        del command[at:at + 2]
        code, out = run(command, prefix=prefix, log=f"{folder}/resolve", timeout=60, env=move.hosts.tool.environment("source"))
        expect(code == 0 and "runs at the destination" in out, f"resolve exited {code}: {out[-500:]}")
        move.arrives(code=3)
        there = read(f"{folder}/receive")
        expect("has all its memory here" in there and "a feed ended" not in there, f"the receiver says {there[-600:]}")
        code, out = move.hosts.tool.resolve(move.hosts.network, "source", "destination", move.hosts.keys, move.session)
        expect(code == 0 and "is settled" in out, f"resolve of a settled session exited {code}: {out[-500:]}")
    finally:
        move.close()


class BehindItsGate(Move):
    """Whose source has committed and is left by everybody before it could say so."""
    def begin(self, via=None):
        self.send(via)
        wait_for(lambda: stopped_at([self.sender.pid]), "send to have committed", 30)
        self.find_session()
        kill_all([*self.source_guardian(), *self.named("guardian-watch source ", self.session)])
        self.sender.kill()


def resolved_behind_its_gate(context, folder):
    """`migrate resolve` opens the gate, since nobody else does, and brings the pages that are missing there."""
    move = BehindItsGate(context, folder, "postcopy", env={"MIGRATE_FAULT": "source-agent.committed:stop-self"})
    try:
        move.send_ends(-signal.SIGKILL)
        states = move.state("source"), move.state("destination")
        expect(states == ("COMMITTED", "PREPARED"), f"source and destination are {states}")
        code, out = move.hosts.tool.resolve(move.hosts.network, "source", "destination", move.hosts.keys, pid=move.old)
        expect(code == 0 and "runs at the destination" in out, f"resolve exited {code}: {out[-500:]}")
        move.find_copy()
        move.arrives(code=-signal.SIGKILL)
    finally:
        move.close()


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
    "left/resolved-as-told": resolved_as_told,
    "left/resolved-behind-its-gate": resolved_behind_its_gate,
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
    **{f"kill/source-task-{which}{'-and-agent' if agent else ''}": task_killed(which, agent)
       for which in range(3) for agent in (False, True)},
    "kill/by-force": killed_by_force,
    "left-alone/copy": left_alone(False),
    "left-alone/folder": left_alone(True),
    **postcopy_cgroups.CASES,
    "once": once_is_once,
    "restarted/destination": destination_restarted,
    **postcopy_shared.CASES,
    **postcopy_forced.CASES,
    "nothing-late": nothing_late,
}


if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mpc-"))

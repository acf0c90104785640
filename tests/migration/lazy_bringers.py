"""Cases of lazy_verbs.py: the processes that bring pages are killed."""
import contextlib
import os
import signal

from lazy_moves import expect_moved, moving, slowly, started_there
from lib import lazy
from lib.process import all_pids, descendants, exists, kill_all, read, run, wait_for
from lib.suite import expect


def bringers(front):
    """The processes that bring pages: {"migrate-lazy": [the daemon], "migrate-hold": [its holders]}."""
    found = {}
    for pid in descendants(front)[1:] or [front]:
        if exists(pid):
            found.setdefault(read(f"/proc/{pid}/comm").strip(), []).append(pid)
    return found


def kill_in_turn(front, over, least):
    """Daemon and holders, one at a time, each when the last one is followed, four times as often as `least` unless it is `over`."""
    complete = {"migrate-lazy": 1, "migrate-hold": 2}
    numbers = lambda: {name: len(pids) for name, pids in bringers(front.pid).items()}
    for kills in range(4 * least + 1):
        wait_for(lambda: over() or numbers() == complete, "who was killed to be followed", 20, 0.001)
        now = bringers(front.pid)
        if over() or {name: len(pids) for name, pids in now.items()} != complete:
            break
        daemon, *holders = (pid for name in ("migrate-lazy", "migrate-hold") for pid in now[name])
        victim = (daemon, holders[1], holders[0])[kills % 3]
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGSTOP)  # no page comes while we look
            os.kill(victim, signal.SIGKILL)
        wait_for(lambda: not exists(victim), "a killed process to be gone", 20, 0.0005)
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGCONT)
    expect(kills >= least, f"only {kills} were killed before all pages had come")


def expect_no_bringers(folder):
    """Nothing of theirs stays: no process, no socket."""
    words = lambda p: read(f"/proc/{p}/cmdline").split("\0")
    wait_for(lambda: not [p for p in all_pids() if exists(p) and {"lazy-pages", folder} <= set(words(p))], "the last of them to end", 5)
    expect(not os.path.exists(os.path.join(folder, "lazy-pages.socket")), "the socket is left")


def bringers_killed_images(context, folder):
    """Any one of those that bring pages from the folder may be killed, again and again: nothing reads zeros."""
    with moving(context, folder, mib=256) as (program, move):
        code, out = run([context.binary, "dump", "-t", program.pid, "-D", move.there])
        expect(code == 0, f"dump exited {code}: {out}")
        program.reap_old()
        move.daemon = lazy.started(context.binary, move.daemon_log, ["lazy-pages", "-D", move.there, "-v4"], "lazy-pages")
        program.moved_to(move.expect_restored(), None)
        kill_in_turn(move.daemon, lambda: move.daemon.poll() is not None, 3)
        program.check()
        expect(move.ended("daemon") == 0, f"the daemon failed: {read(move.daemon_log)[-500:]}")
        expect_no_bringers(move.there)


def bringers_killed_server(context, folder):
    """The same with pages of a page server, which is asked again."""
    with moving(context, folder) as (program, move), slowly(move, 40 << 20) as relay:
        started_there(program, move, relay)
        kill_in_turn(move.daemon, lambda: move.dumper.poll() is not None, 12)
        expect(relay.connections > 5, "nobody has connected again")
        relay.rate = 0
        expect_moved(program, move)
        expect_no_bringers(move.there)


def other_children(context, folder):
    """Whoever executes the command may leave it children of his own: they are neither waited for nor ended."""
    with moving(context, folder, mib=16) as (program, move):
        code, out = run([context.binary, "dump", "-t", program.pid, "-D", move.there])
        expect(code == 0, f"dump exited {code}: {out}")
        program.reap_old()
        other = os.path.join(folder, "other")
        move.daemon = lazy.started(context.binary, move.daemon_log, ["lazy-pages", "-D", move.there], "lazy-pages",
                                   prefix=["sh", "-c", 'sleep 1000 & echo $! >"$0" && exec "$@"', other])
        other = int(read(other))
        try:
            program.moved_to(move.expect_restored(), None)
            program.check()
            expect(move.ended("daemon", 10) == 0, f"the daemon failed: {read(move.daemon_log)[-500:]}")
            expect(exists(other), "a child of somebody else was ended")
        finally:
            kill_all([other])
        expect_no_bringers(move.there)


def front_killed(context, folder):
    """Who started it and those who wait for it may die: the pages come."""
    with moving(context, folder) as (program, move), slowly(move, 40 << 20) as relay:
        started_there(program, move, relay)
        left = sum(bringers(move.daemon.pid).values(), [])
        expect(len(left) == 3, f"{left} bring pages")
        move.daemon.kill()
        move.daemon.wait()
        for pid in left[:1]:
            os.kill(pid, signal.SIGKILL)
        relay.rate = 0
        code = move.ended("dumper")
        expect(code == 0, f"dump exited {code}: {read(move.dump_log)[-300:]}")
        expect_no_bringers(move.there)
        program.check()
        program.reap_old(move.namespace.pid)


def given_up_waiting(context, folder):
    """Before a restore has come, who ends the daemon ends all of it, and a killed one is followed."""
    with moving(context, folder, "tree") as (program, move):
        move.dump()
        move.copy()
        pidfile = os.path.join(move.there, "pidfile")
        code, out = run([context.binary, "lazy-pages", "-D", move.there, "--page-server", "--address", "127.0.0.1", "--port", move.port,
                         "--daemon", "--pidfile", pidfile])
        front = int(read(pidfile))
        expect(code == 0 and len(descendants(front)) == 4, f"exit {code}: {out}; {descendants(front)}")
        os.kill(front, signal.SIGTERM)
        expect_no_bringers(move.there)
        move.lazy_pages()
        daemon = bringers(move.daemon.pid)["migrate-lazy"][0]
        os.kill(daemon, signal.SIGKILL)
        wait_for(lambda: bringers(move.daemon.pid).get("migrate-lazy", [daemon]) != [daemon], "another one", 10)
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)
        expect_no_bringers(move.there)


# Of the daemon's way (lazy_serving.cpp, lazy_record.cpp), in their order. In the middle of the early ones a restore fails.
EARLY = ("connected", "listening", "received", "page-claimed", "before-adopted")
LATE = ("adopted", "told-to-run", "runs", "pages-put", "whole", "given-back", "closing", "closed", "ended")


def killed_at(steps):
    """The daemon is killed at a step of its way: another goes on from there, or nothing has happened."""
    def case(context, folder):
        for step in steps:
            with moving(context, os.path.join(folder, step), mib=2) as (program, move):
                move.dump()
                move.copy()
                move.lazy_pages(env={"MIGRATE_LAZY_STEP": step})
                first = move.restore()
                expect(first == 0 or (first == 1 and step in EARLY[2:]), f"{step}: restore exited {first}")
                program.moved_to(move.moved() if first == 0 else move.expect_restored(), None)
                expect_moved(program, move)
                expect("process that served missing pages is gone" in read(move.daemon_log), f"{step}: nobody was killed")
                expect_no_bringers(move.there)
    return case


CASES = {"bringers/early": killed_at(EARLY), "bringers/late": killed_at(LATE), "bringers/images": bringers_killed_images,
         "bringers/server": bringers_killed_server, "bringers/front": front_killed, "bringers/other-children": other_children, "bringers/before": given_up_waiting}

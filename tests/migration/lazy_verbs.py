#!/usr/bin/env python3
"""Lazy migrations by the low-level verbs, and all that can come in their way.

    lazy_verbs.py [--build DIR] [--only REGEX] [--list]"""
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
import chains  # noqa: E402
import lazy_bringers  # noqa: E402
import lazy_hostile  # noqa: E402
from lazy_moves import (MIB, PAGE, executable, expect_as_before, expect_frozen, expect_moved, free_port, freezer_of, moving, slowly,  # noqa: E402
                        started_there)
from lib import crit, lazy, programs, suite, tool  # noqa: E402
from lib.process import Deadline, descendants, exists, find_moved, kill_all, kill_tree, read, run, stat_fields, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402


def script_of_readme():
    text = read(os.path.join(suite.ROOT, "README.md"))
    block = text[text.index("    #!/bin/bash\n"):]
    lines = []
    for line in block.splitlines():
        if not line.startswith("    "):
            break
        lines.append(line[4:])
    return "\n".join(lines) + "\n"


def the_script(fails):
    """The README's script, with a scp and a ssh that stay on this machine. `fails`: the restore does, the program runs on, and the
    daemon ends."""
    def case(context, folder):
        keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["127.0.0.1"])
        with moving(context, folder, "tree" if fails else "memory") as (program, move):
            before = cases.facts(program)
            there, tools, here = (os.path.join(folder, name) for name in ("there", "tools", "here"))
            for path in (there, tools, here):
                os.mkdir(path)
            done, init = os.path.join(there, "restored"), os.path.join(tools, "init.py")
            tls = " ".join(lazy.tls_options(keys, "127.0.0.1")[1:])
            executable(init, lazy.INIT)
            executable(f"{tools}/lazy-move", script_of_readme())
            expect("sleep" not in read(f"{tools}/lazy-move"), "it sleeps")
            executable(f"{tools}/migrate", f'''#!/bin/bash
for a in "$@"; do args+=("${{a/7401/{move.port}}}"); [ "$a" != --tls ] || args+=({tls}); done
exec {context.binary} "${{args[@]}}"
''')
            executable(f"{tools}/scp", f'#!/bin/bash\n[ "$3" = host-b: ] && exec cp -r "$2" {there}/\n')
            executable(f"{tools}/ssh", f"""#!/bin/bash
[ "$1" = host-b ] && shift && cd {there} || exit 9
[ "$2" = restore ] || exec "$@"
{"exit 8" if fails else ""}
setsid unshare --pid --fork --mount-proc --kill-child {sys.executable} {init} {done} "$@" >restore.log 2>&1 </dev/null &
echo $! >namespace
while [ ! -e {done} ]; do kill -0 $! || exit 8; sleep 0.02; done
exit "$(cat {done})"
""")
            try:
                p = subprocess.run([f"{tools}/lazy-move", str(program.pid), "host-b", "127.0.0.1"], cwd=here, capture_output=True, text=True,
                                   env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, timeout=60, check=False)
                expect(p.returncode == (8 if fails else 0), f"it exited {p.returncode}: {p.stdout}{p.stderr}")
                if fails:
                    daemon = int(read(f"{there}/images/daemon.pid"))
                    wait_for(lambda: not exists(daemon), "the daemon that no restore has come to to end", 10)
                    wait_for(lambda: stat_fields(program.pid)[0] != "t", "the program to be let go", 10)
                    return expect_as_before(program, before)
                program.moved_to(move.moved(), None)
                program.check()
                program.reap_old()
            finally:
                for file in ("namespace", "images/daemon.pid"):
                    number = read(f"{there}/{file}").strip()
                    if number and exists(int(number)):
                        kill_tree(int(number))
    return case


def two_at_a_time(context, folder):
    """Each has a socket, a port and a cgroup of its own."""
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(moving(context, os.path.join(folder, name), name)) for name in ("memory", "threads")]
        for _, move in both:
            move.dump()
        for _, move in both:
            move.copy()
            move.lazy_pages()
        for program, move in both:
            program.moved_to(move.expect_restored(), None)
        for program, move in both:
            program.check()
            move.expect_done()


def given_up_before(how):
    """Before anybody has asked for a page the tree is ours."""
    def case(context, folder):
        with moving(context, folder, "tree") as (program, move):
            before = cases.facts(program)
            move.dump(*(["--client-timeout", "1"] if how is None else []))
            if how == "connected":
                with socket.create_connection(("127.0.0.1", move.port)):
                    wait_for(lambda: "may ask for pages" in read(move.dump_log), "the server to see a client", 5)
                    move.dumper.send_signal(signal.SIGINT)
                    code = move.ended("dumper", 20)
            else:
                if how is not None:
                    move.dumper.send_signal(how)
                code = move.ended("dumper", 20)
            log = read(move.dump_log)
            expect(code == (-signal.SIGKILL if how == signal.SIGKILL else 1), f"dump exited {code}: {log[-300:]}")
            if how != signal.SIGKILL:
                expect("runs on here" in log.splitlines()[-1], f"it says: {log[-300:]}")
            expect_as_before(program, before)
            # And it can be moved after that.
            shutil.rmtree(move.here)
            os.mkdir(move.here)
            started_there(program, move)
            expect_moved(program, move)
    return case


def cuts(context, folder):
    """A connection that is cut again and again, and once for longer: nothing is lost, nothing doubled."""
    with moving(context, folder) as (program, move), slowly(move, 60 << 20) as relay:
        started_there(program, move, relay)
        old = move.pid
        for n in range(4):
            seen, there = relay.connections, relay.to_client
            wait_for(lambda: relay.to_client > there + (2 << 20) or move.daemon.poll() is not None, "pages", 20)
            expect(move.daemon.poll() is None, "all came before the cut")
            relay.cut(down=n == 2)
            if n == 2:
                wait_for(lambda: "who touches a page that is missing waits" in read(move.daemon_log), "the daemon to notice", 10)
                expect_frozen(old)
                relay.up()
            wait_for(lambda: relay.connections > seen, "the daemon to connect again", 20)
        relay.rate = 0
        expect_moved(program, move)
        for log, words in ((move.daemon_log, "connected with page server"), (move.dump_log, "the connection with")):
            expect(words in read(log), f"{log} does not say so: {read(log)[-400:]}")


def stale(context, folder):
    """Images of a dump that was given up, and the pages of the next one: pids are the same, the memory is not."""
    with moving(context, folder, "tree") as (program, move):
        move.dump()
        move.copy()
        move.dumper.send_signal(signal.SIGINT)
        expect(move.ended("dumper", 20) == 1, "dump exited 0")
        program.check()
        move.dump()
        code, out = run([context.binary, "lazy-pages", "-D", move.there, "--page-server", "--address", "127.0.0.1", "--port", move.port])
        expect(code == 2 and "pages of another dump" in out, f"lazy-pages: exit {code}, {out}")
        expect(not freezer_of(program.pid), "it has claimed the tree")
        move.copy()
        move.lazy_pages()
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)


class Wild(programs.Workload):
    """Forks, executes, maps and opens at random, all the time, also while its pages come."""
    dump_options = ("--link-remap", "--ext-unix-sk")

    def __init__(self, context, folder):
        super().__init__("wild", os.path.join(context.workloads, "wild"), [str(os.getpid()), "3"], folder)

    def check(self):
        failures = read(os.path.join(self.folder, "failures"))
        expect(not failures, f"wild (seed {self.line[-2]}): {failures}")
        super().check()


def wild(context, folder):
    """A tree that changes all the time, also where it is stopped, and while its pages come over a connection that is cut."""
    options = Wild.dump_options
    with moving(context, folder, lambda place: Wild(context, place), source_options=options) as (program, move):
        with slowly(move, 3 << 20) as relay:
            wait_for(lambda: len(descendants(program.pid)) > 5, "it to have some children", 20)
            move.dump()
            move.copy()
            move.lazy_pages(port=relay.port)
            program.moved_to(move.expect_restored(*options), None)
            for _ in range(3):
                seen, there = relay.connections, relay.to_client
                wait_for(lambda: relay.to_client > there + (200 << 10) or move.daemon.poll() is not None, "pages", 20)
                relay.cut()
                wait_for(lambda: relay.connections > seen or move.daemon.poll() is not None, "the daemon to connect again", 20)
            relay.rate = 0
            expect_moved(program, move)


def kill_servers(which):
    """Either process that gives pages out may be killed."""
    def case(context, folder):
        with moving(context, folder) as (program, move), slowly(move, 60 << 20) as relay:
            started_there(program, move, relay)
            old = move.pid
            for n in range(3 if which == "giver" else 1):
                seen = relay.to_client
                wait_for(lambda: relay.to_client > seen + (1 << 20), "pages", 20)
                givers = [p for p in descendants(move.dumper.pid) if read(f"/proc/{p}/comm") == "migrate-pages\n"]
                expect(len(givers) == 1, f"{len(givers)} processes give pages")
                os.kill(givers[0] if which == "giver" else move.dumper.pid, signal.SIGKILL)
                expect_frozen(old)
            relay.rate = 0
            program.check()
            expect(move.ended("daemon") == 0, f"the daemon failed: {read(move.daemon_log)[-300:]}")
            code = move.ended("dumper")
            expect(code == (0 if which == "giver" else -signal.SIGKILL), f"dump exited {code}: {read(move.dump_log)[-300:]}")
            wait_for(lambda: not exists(old), "the source to be killed", 10)
            program.reap_old(move.namespace.pid)
    return case


def interrupted_after(context, folder):
    """From the first page on only SIGQUIT ends it, and then the tree is killed, never let go."""
    with moving(context, folder) as (program, move), slowly(move, 1 << 20) as relay:
        started_there(program, move, relay, ["--recover-timeout", "1"])
        old = move.pid
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            said = read(move.dump_log).count("it stays frozen")
            move.dumper.send_signal(sig)
            wait_for(lambda: read(move.dump_log).count("it stays frozen") > said, "an answer to the signal", 10)
            expect(move.dumper.poll() is None, "it has ended")
            expect_frozen(old)
        move.dumper.send_signal(signal.SIGQUIT)
        code = move.ended("dumper", 20)
        expect(code == 1 and "given up" in read(move.dump_log), f"dump exited {code}: {read(move.dump_log)[-300:]}")
        wait_for(lambda: not exists(old), "the source to be killed", 10)
        # What is lost is never zeros.
        expect(move.ended("daemon", 30) == 1, "the daemon thinks that all is well")
        log = read(move.daemon_log)
        expect("pages are lost" in log, f"the daemon says: {log[-300:]}")
        wait_for(lambda: not exists(program.pid), "the program to touch what is lost", 20)
        expect("FAIL" not in read(os.path.join(program.folder, "result")), "it read something else")


def killed_here(claimed):
    """A held tree that is killed by somebody is not waited for."""
    def case(context, folder):
        with moving(context, folder) as (program, move), slowly(move, 1 << 20) as relay:
            if claimed:
                started_there(program, move, relay, ["--recover-timeout", "1"])
                relay.cut(down=True)
            else:
                move.dump()
            os.kill(move.pid, signal.SIGKILL)
            code = move.ended("dumper", 20)
            words = "has ended here after" if claimed else "has ended while it was held"
            expect(code == 1 and words in read(move.dump_log), f"dump exited {code}: {read(move.dump_log)[-300:]}")
            if claimed:
                expect(move.ended("daemon", 30) == 1, "the daemon thinks that all is well")
            program.reap_old(*([move.namespace.pid] if claimed else []))
    return case


def task_killed_here(context, folder):
    """What was missing of one task that is killed in the held tree is lost: it gets SIGBUS there, all others have every page."""
    chain = lambda place: programs.Workload("chain", os.path.join(context.workloads, "chain"), ["20", "2"], place)
    with moving(context, folder, chain) as (program, move), slowly(move, 10 << 20) as relay:
        old = move.pid
        child = next(p for p in descendants(old) if p != old and int(stat_fields(p)[1]) == old)
        started_there(program, move, relay)
        # What a task needs to tell of lost pages must have come.
        warm = lambda: [int(n) for n in read(os.path.join(program.folder, "warm")).split()]
        before = warm()
        wait_for(lambda: len(warm()) == 3 and all(n > b + 5 for n, b in zip(warm(), before)), "all tasks to be warm", 20)
        os.kill(child, signal.SIGKILL)
        program.check()
        lost = [int(n) for n in read(os.path.join(program.folder, "lost")).split()]
        expect(lost[1] > 100 and lost[0] == lost[2] == 0, f"pages lost of each task: {lost}")
        code = move.ended("daemon")
        expect(code == 1 and "killed at the page server" in read(move.daemon_log), f"the daemon exited {code}: {read(move.daemon_log)[-300:]}")
        code = move.ended("dumper")
        expect(code == 0 and "was killed here before" in read(move.dump_log), f"dump exited {code}: {read(move.dump_log)[-300:]}")
        wait_for(lambda: not exists(old), "the source to be killed", 10)
        program.reap_old(move.namespace.pid)
        program.check()


def held_is_not_moved(context, folder):
    """What a lazy dump holds may run elsewhere: nobody dumps or sends it from here."""
    with moving(context, folder) as (program, move), slowly(move, 1 << 20) as relay:
        started_there(program, move, relay)
        old = move.pid
        other = os.path.join(folder, "other")
        os.mkdir(other)
        for command in (["dump", "-t", old, "-D", other], ["dump", "-t", old, "-D", other, "-R"], ["dump", "-t", old, "-D", other, "--lazy-pages",
                        "--address", "127.0.0.1"], ["pre-dump", "-t", old, "-D", other], ["send", "127.0.0.1:1", f"pid:{old}", "--insecure"]):
            code, out = run([context.binary, *command], timeout=15)
            expect(code == 2 and "held" in out, f"{command[0]}: exit {code}, {out}")
            expect_frozen(old)
        expect(not os.listdir(other), f"something was written: {os.listdir(other)}")
        relay.rate = 0
        expect_moved(program, move)


def restore_fails(context, folder):
    """A restore that fails has taken nothing: the same images are restored by the next one, or the tree runs on."""
    with moving(context, folder, "tree") as (program, move):
        before = cases.facts(program)
        script = os.path.join(folder, "script")
        executable(script, '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != pre-resume ]\n')
        for again in (False, True):
            move.dump()
            move.copy()
            move.lazy_pages()
            code = move.restore("--action-script", script)
            expect(code == 1, f"restore exited {code}")
            expect(not find_moved(program.inner, program.comm()), "something runs at the destination")
            expect(move.daemon.poll() is None and move.dumper.poll() is None, "the others have ended")
            if not again:
                move.dumper.send_signal(signal.SIGTERM)
                expect(move.ended("dumper", 20) == 1, "dump exited 0")
                move.daemon.kill()
                move.daemon.wait()
                expect_as_before(program, before)
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)


def restore_killed(context, folder):
    """A restore that is killed when its daemon has claimed the tree: that stays where it is, for the next restore."""
    with moving(context, folder) as (program, move):
        old = move.pid
        move.dump()
        move.copy()
        move.lazy_pages()
        all_of_them = descendants(move.daemon.pid)
        for pid in all_of_them:
            os.kill(pid, signal.SIGSTOP)
        try:
            move.restore(timeout=3)
            raise AssertionError("restore did not wait for its daemon")
        except Deadline:
            move.end_namespace()
        for pid in all_of_them:
            os.kill(pid, signal.SIGCONT)
        log = lambda: read(move.daemon_log)
        expect(move.ended("daemon", 20) == 1, f"the daemon thinks that all is well: {log()[-300:]}")
        expect(not find_moved(program.inner, program.comm()), "something runs at the destination")
        expect(exists(old) and move.dumper.poll() is None, "the source was killed")
        move.lazy_pages()
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)


def beside_the_original(context, folder):
    """What a lazy dump holds is not to be ended for a restore beside it: it has the only copy of its pages."""
    with moving(context, folder, "tree") as (program, move):
        before = cases.facts(program)
        move.dump()
        move.copy()
        move.lazy_pages()
        code, out = run([context.binary, "restore", "-D", move.there, "-d", "--lazy-pages"])
        expect(code == 2 and f"pid {program.inner} is taken" in out and "pages that exist nowhere else" in out and
               "end that process" not in out, f"restore exited {code}: {out}")
        move.dumper.send_signal(signal.SIGINT)
        expect(move.ended("dumper", 20) == 1, "dump exited 0")
        expect_as_before(program, before)


def server_gone(context, folder):
    """As long as no restore has come a daemon outlives a cut, but not its page server."""
    with moving(context, folder, "tree") as (program, move), slowly(move) as relay:
        before = cases.facts(program)
        move.dump()
        move.copy()
        ours = descendants(move.lazy_pages("--recover-timeout", "1", port=relay.port).pid)
        move.dumper.send_signal(signal.SIGINT)
        expect(move.ended("dumper", 20) == 1, "dump exited 0")
        code = move.ended("daemon", 20)
        log = read(move.daemon_log)
        expect(code == 1 and "was not reached for 1 s" in log and "no restore has come" in log, f"lazy-pages exited {code}: {log[-400:]}")
        wait_for(lambda: not any(exists(p) for p in ours), "the others of it to be gone", 5)
        expect(not os.path.exists(f"{move.there}/lazy-pages.socket"), "its socket is left")
        expect_as_before(program, before)

        shutil.rmtree(move.here)
        os.mkdir(move.here)
        os.unlink(move.daemon_log)  # it is appended to
        move.dump()
        move.copy()
        move.lazy_pages(port=relay.port)
        for n in (1, 2):
            relay.cut(down=n == 2)
            wait_for(lambda: read(move.daemon_log).count("is cut before a restore has come") == n, "the daemon to notice", 10)
            relay.up()
            wait_for(lambda: read(move.daemon_log).count("connected with page server") == n, "the daemon to connect again", 10)
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)


def daemon_fails(context, folder):
    """A daemon that cannot bring pages when it comes to it: nothing runs."""
    with moving(context, folder, "tree") as (program, move), slowly(move) as relay:
        before = cases.facts(program)
        move.dump()
        move.copy()
        move.lazy_pages(port=relay.port)
        relay.close()
        code = move.restore()
        log = read(move.there + "/restore.log")
        expect(code == 1 and "has given up before the tree could run" in log, f"restore exited {code}: {log[-400:]}")
        expect(move.ended("daemon", 20) == 1, "the daemon thinks that all is well")
        expect(not find_moved(program.inner, program.comm()), "something runs at the destination")
        move.dumper.send_signal(signal.SIGINT)
        expect(move.ended("dumper", 20) == 1, "dump exited 0")
        expect_as_before(program, before)


def refusals(context, folder):
    """What makes no sense is refused before anything is touched."""
    with moving(context, folder, "tree") as (program, move):
        before = cases.facts(program)
        command = [context.binary, "dump", "-t", program.pid, "-D", move.here, "--lazy-pages", "--address", "127.0.0.1", "--port", move.port]
        for options in (["-R"], ["-s"], ["--page-server"], ["--ps-socket", "3"], ["--bandwidth-limit", "1M"]):
            code, out = run([*command, *options])
            expect(code == 2 and ("exclude each other" in out or "no connection to hold back" in out), f"{options}: exit {code}, {out}")
        code, out = run([*command[:-4], "--port", move.port])
        expect(code == 2 and "plain text" in out, f"plain text to anywhere: exit {code}, {out}")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, out = run([*command[:-1], taken.getsockname()[1]])
            expect(code in (1, 2) and str(taken.getsockname()[1]) in out, f"a port that is taken: exit {code}, {out}")
        expect(not os.listdir(move.here), f"something was written: {os.listdir(move.here)}")
        expect_as_before(program, before)

        move.dump()
        move.copy()
        code, out = run([context.binary, "restore", "-D", move.there, "-d"])
        expect(code == 2 and "only names" in out and "--lazy-pages" in out, f"restore: exit {code}, {out}")
        code, out = run([context.binary, "restore", "-D", move.there, "-d", "--lazy-pages"])
        expect(code == 2 and "no lazy-pages daemon" in out, f"restore: exit {code}, {out}")
        code, out = run([context.binary, "lazy-pages", "-D", move.there])
        expect(code == 2 and "only names" in out and "--page-server" in out, f"lazy-pages: exit {code}, {out}")
        code, out = run([context.binary, "lazy-pages", "-D", move.there, "--port", "1"])
        expect(code == 2 and "--page-server" in out, f"lazy-pages: exit {code}, {out}")
        code, out = run([context.binary, "lazy-pages", "-D", move.there, "--page-server", "--address", "127.0.0.1", "--port", free_port()])
        expect(code == 1 and "refused" in out, f"lazy-pages: exit {code}, {out}")
        move.lazy_pages()
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)


def chained(context, folder):
    """After a pre-dump only what was written since comes late; the rest stands in the previous folder."""
    with moving(context, folder) as (program, move):
        previous = os.path.join(os.path.dirname(move.here), "before")
        os.mkdir(previous)
        code, out = run([context.binary, "pre-dump", "-t", program.pid, "-D", previous])
        expect(code == 0, f"pre-dump exited {code}: {out}")
        move.dump("--prev-images-dir", "../before")
        os.symlink("../before", os.path.join(move.there, "parent"))
        move.copy()
        move.lazy_pages()
        program.moved_to(move.expect_restored(), None)
        expect_moved(program, move)
        flags = [(flags, pages) for entries in chains.pagemaps(move.here).values() for flags, pages in entries]
        named = sum(pages for f, pages in flags if f & chains.LAZY)
        stats = crit.entries(move.here, ["stats-dump"])["stats-dump"][0]["dump"]
        expect(all(f == chains.LAZY for f, _ in flags if f & chains.LAZY), f"pages are both named and stored: {flags}")
        expect(int(stats["pages_lazy"]) == named > 0, f"stats-dump counts {stats['pages_lazy']} pages, not {named}")
        expect(f"{named} were announced" in read(move.dump_log), f"{named} pages are named: {read(move.dump_log)[-300:]}")
        given = int(re.search(r"gave (\d+) pages", read(move.dump_log))[1])
        expect(given * PAGE < MIB << 19, f"{given} pages were given, so nothing was left in the previous folder")


class Locked(programs.Program):
    """All its memory is locked, so that none of it may come late."""
    name = "locked"

    def command(self):
        return ["/usr/bin/python3", "-c", "import ctypes, gc, signal; gc.disable(); print(ctypes.CDLL(None).mlockall(1), flush=True); signal.pause()"]

    def ready(self):
        wait_for(lambda: read(os.path.join(self.folder, "output")) == "0\n", "memory to be locked", 10)
        wait_for(lambda: stat_fields(self.pid)[0] == "S", "it to sleep", 10)

    def check(self):
        expect(exists(self.pid), "it is dead")


def nothing_late(context, folder):
    """A program whose pages are all in the folder is handed over all the same."""
    with moving(context, folder, Locked) as (program, move):
        started_there(program, move)
        expect_moved(program, move)
        expect("gave 0 pages; 0 were announced" in read(move.dump_log), f"dump says: {read(move.dump_log)[-300:]}")


def ends_early(context, folder):
    """A tree that ends before its pages have come needs none."""
    with moving(context, folder) as (program, move), slowly(move, 1 << 20) as relay:
        started_there(program, move, relay)
        kill_all(descendants(program.pid))
        relay.rate = 0
        move.expect_done()
        program.reap_old(move.namespace.pid)


CASES = {"script": the_script(False), "script-fails": the_script(True), "two": two_at_a_time, "chain": chained,
         "ends-early": ends_early, "nothing-late": nothing_late, "refusals": refusals, "stale": stale, "wild": wild,
         "before/int": given_up_before(signal.SIGINT), "before/term": given_up_before(signal.SIGTERM),
         "before/kill": given_up_before(signal.SIGKILL), "before/connected": given_up_before("connected"),
         "before/timeout": given_up_before(None), "before/killed": killed_here(False), "killed-task": task_killed_here,
         "after/killed": killed_here(True), "after/held": held_is_not_moved, "after/interrupted": interrupted_after, "after/cuts": cuts,
         "after/giver-killed": kill_servers("giver"), "after/dump-killed": kill_servers("dump"),
         "before/server-gone": server_gone, "before/beside": beside_the_original, "restore-fails": restore_fails, "restore-killed": restore_killed, "daemon-fails": daemon_fails,
         **lazy_hostile.CASES, **lazy_bringers.CASES}


if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mlazy-"))

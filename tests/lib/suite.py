"""Runs cases, each in a process of its own with a deadline; one line a case, counts at the end.

A case is a function of (context, folder). It raises Skip with a reason, or anything else when it fails."""
import argparse
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
import traceback

from . import remains, tool
from .process import Deadline, become_subreaper, descendants, kill_all, wait_for
from .programs import Unwell

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (Unwell, tool.Failed, Deadline)


class Skip(Exception):
    """The case cannot run here; says why and how to enable it."""


class TimeUp(Exception):
    pass


class Context:
    def __init__(self, options, top):
        self.binary = os.path.abspath(options.migrate or os.path.join(options.build, "migrate", "migrate"))
        self.workloads = os.path.abspath(options.workloads or os.path.join(options.build, "tests", "workloads"))
        self.top = top
        self.not_alone = options.not_alone


def expect(ok, text):
    """Fails the case with `text` unless `ok`."""
    if not ok:
        raise Unwell(text)


def arguments(description):
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="build folder")
    p.add_argument("--migrate", help="the program under test (default: in the build folder)")
    p.add_argument("--workloads", help="folder of the workloads (default: in the build folder)")
    p.add_argument("--only", action="append", default=[], help="regular expression over the names; may be repeated")
    p.add_argument("--list", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep the folder of the run")
    p.add_argument("--timeout", type=int, default=90, help="seconds a case")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: do not look for remains")
    return p.parse_args()


def body(context, name, function, folder, limit):
    """In the case's process. Gives (verdict, text)."""
    def on_alarm(*_):
        raise TimeUp(f"the case took more than {limit} s")
    become_subreaper()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(limit)
    verdict, text = "PASS", ""
    os.makedirs(folder)
    os.chmod(folder, 0o755)
    before = remains.snapshot()
    try:
        function(context, folder)
    except Skip as e:
        verdict, text = "SKIP", str(e)
    except EXPECTED as e:
        verdict, text = "FAIL", str(e)
    except Exception:
        verdict, text = "FAIL", traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    if verdict == "PASS" and not context.not_alone:
        try:
            wait_for(lambda: not remains.new_since(before, (context.top,)), "clean-up", 8, 0.1)
        except Deadline:
            verdict, text = "FAIL", "left behind: " + "; ".join(remains.new_since(before, (context.top,)))
    kill_all([p for p in descendants(os.getpid()) if p != os.getpid()])
    return verdict, text


def one(context, name, function, folder, limit):
    fork = multiprocessing.get_context("fork")
    receive, give = fork.Pipe(duplex=False)

    def child():
        os.setsid()
        give.send(body(context, name, function, folder, limit))
    p = fork.Process(target=child)
    p.start()
    give.close()
    try:
        result = receive.recv() if receive.poll(limit + 60) else None
    except EOFError:
        result = None
    p.join(10)
    if p.is_alive():
        p.kill()
        p.join()
    kill_all([x for x in descendants(os.getpid()) if x != os.getpid()])
    return result or ("FAIL", "the case's process died or hung")


def main(options, cases, prefix):
    """`cases`: {name: function}. Gives the exit code."""
    wanted = {n: f for n, f in cases.items() if not options.only or any(re.search(o, n) for o in options.only)}
    if options.list:
        print("\n".join(wanted))
        return 0
    if os.geteuid() != 0:
        print("these tests need root")
        return 2
    become_subreaper()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    top = tempfile.mkdtemp(prefix=prefix)
    os.chmod(top, 0o755)
    context = Context(options, top)
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    if not os.access(context.binary, os.X_OK):
        print(f"FAIL {context.binary} is not there: run scripts/build")
        return 1
    try:
        for name, function in wanted.items():
            folder, started = os.path.join(top, re.sub(r"[^\w-]", "_", name)), time.monotonic()
            verdict, text = one(context, name, function, folder, options.timeout)
            counts[verdict] += 1
            if verdict == "FAIL":
                text += f"\n  kept: {folder}"
            elif not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
            print(f"{verdict} {name} ({time.monotonic() - started:.1f} s)" + (f": {text}" if text else ""), flush=True)
    finally:
        kill_all([x for x in descendants(os.getpid()) if x != os.getpid()])
        if not counts["FAIL"] and not options.keep:
            shutil.rmtree(top, ignore_errors=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped", flush=True)
    return 1 if counts["FAIL"] else 0

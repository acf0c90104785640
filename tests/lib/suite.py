"""Runs cases, each in a process of its own with a deadline; one line a case, counts at the end.

A case is a function of (context, folder). It may give a sentence, and raises Skip with a reason, or anything else when it fails."""
import argparse
import contextlib
import os
import re
import shutil
import tempfile
import time
import traceback

from . import parallel, remains, tool
from .process import Deadline, become_subreaper, wait_for
from .programs import Unwell
from .skip import Skip

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (Unwell, tool.Failed, Deadline)


class Context:
    def __init__(self, options, top):
        self.binary = os.path.abspath(options.migrate or os.path.join(options.build, "migrate", "migrate"))
        self.workloads = os.path.abspath(options.workloads or os.path.join(options.build, "tests", "workloads"))
        self.top = top
        self.not_alone = options.not_alone
        self.small = None  # no small workloads (tests/migration/small.py)


def expect(ok, text):
    """Fails the case with `text` unless `ok`."""
    if not ok:
        raise Unwell(text)


def arguments(description, more=lambda parser: None):
    """`more` adds options."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="build folder")
    p.add_argument("--migrate", help="the program under test (default: in the build folder)")
    p.add_argument("--workloads", help="folder of the workloads (default: in the build folder)")
    p.add_argument("--only", action="append", default=[], help="regular expression over the names; may be repeated")
    p.add_argument("--list", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep the folder of the run")
    p.add_argument("--timeout", type=int, default=90, help="seconds a case")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: do not look for remains")
    more(p)
    return p.parse_args()


def body(context, name, function, folder):
    """In the case's process. Gives (verdict, text)."""
    verdict, text = "PASS", ""
    os.makedirs(folder)
    os.chmod(folder, 0o755)
    before = remains.snapshot()
    try:
        told = function(context, folder)
        text = told if isinstance(told, str) else ""
    except Skip as e:
        verdict, text = "SKIP", str(e)
    except EXPECTED as e:
        verdict, text = "FAIL", str(e)
    except Exception:
        verdict, text = "FAIL", traceback.format_exc(limit=-6)
    if verdict == "PASS" and not context.not_alone:
        try:
            wait_for(lambda: not remains.new_since(before, (context.top,)), "clean-up", 8, 0.1)
        except Deadline:
            verdict, text = "FAIL", "left behind: " + "; ".join(remains.new_since(before, (context.top,)))
    return verdict, text


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
    parallel.interruptible()
    top = tempfile.mkdtemp(prefix=prefix)
    os.chmod(top, 0o755)
    context = Context(options, top)
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    if not os.access(context.binary, os.X_OK):
        print(f"FAIL {context.binary} is not there: run scripts/build")
        return 1
    started = time.monotonic()
    jobs = [(name, os.path.join(top, re.sub(r"[^\w-]", "_", name))) for name in wanted]
    cases_run = parallel.run(jobs, lambda job: body(context, job[0], wanted[job[0]], job[1]), 1, options.timeout)
    try:
        with contextlib.closing(cases_run):
            for (name, folder), result in cases_run:
                verdict, text = result or ("FAIL", "the case's process died or hung")
                counts[verdict] += 1
                if verdict == "FAIL":
                    text += f"\n  kept: {folder}"
                elif not options.keep:
                    shutil.rmtree(folder, ignore_errors=True)
                print(f"{verdict} {name} ({time.monotonic() - started:.1f} s)" + (f": {text}" if text else ""), flush=True)
                started = time.monotonic()
    finally:
        if not counts["FAIL"] and not options.keep:
            shutil.rmtree(top, ignore_errors=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped", flush=True)
    return 1 if counts["FAIL"] else 0

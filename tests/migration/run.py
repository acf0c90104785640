#!/usr/bin/env python3
"""Moves every workload and some real programs in every mode, and checks that nobody can tell the difference.

    run.py [--build DIR] [--only REGEX] [--mode MODE] [-j N] [--list]

One line a case; the log of a failed one is kept and its end printed. Closes with the counts."""
import argparse
import contextlib
import glob
import os
import re
import shutil
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from lib import parallel, remains, tool  # noqa: E402
from lib.process import Deadline, become_subreaper  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (cases.programs.Unwell, tool.Failed, Deadline)


def one(context, mode, name, folder):
    """In a process of its own. Gives (verdict, seconds, text)."""
    started = time.monotonic()
    verdict, text = "PASS", ""
    try:
        cases.run_case(context, mode, name, folder)
    except cases.Skip as e:
        verdict, text = "SKIP", str(e)
    except EXPECTED as e:
        verdict, text = "FAIL", str(e)
    except Exception:
        verdict, text = "FAIL", traceback.format_exc(limit=-6)
    if verdict == "FAIL":
        text += kept_logs(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return verdict, time.monotonic() - started, text


def kept_logs(folder):
    text = f"\n  kept: {folder}"
    paths = [os.path.join(folder, f) for f in ("commands.log", "receive.log", "program/output")]
    for path in paths + sorted(glob.glob(f"{folder}/images-*/*.log")):
        file = os.path.relpath(path, folder)
        if os.path.exists(path) and os.path.getsize(path):
            text += f"\n  --- {file}\n" + "\n".join("  " + line for line in tool.tail(path, 12).splitlines())
    return text


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="build folder")
    p.add_argument("--migrate", help="the program under test (default: in the build folder)")
    p.add_argument("--workloads", help="folder of the workloads (default: in the build folder)")
    p.add_argument("--only", action="append", default=[], help="regular expression over MODE/NAME; may be repeated")
    p.add_argument("--mode", action="append", choices=cases.MODES, default=[])
    p.add_argument("--list", action="store_true")
    p.add_argument("-j", "--jobs", type=int, default=1)
    p.add_argument("--timeout", type=int, default=180, help="seconds a case")
    p.add_argument("--keep", action="store_true", help="keep the folder of the run")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: do not look for remains")
    p.add_argument("--fail-fast", action="store_true")
    p.add_argument("--send-arg", action="append", default=[])
    p.add_argument("--receive-arg", action="append", default=[])
    return p.parse_args()


def main():
    options = parse()
    wanted = [(m, n) for m in (options.mode or cases.MODES) for n in cases.names(m)
              if not options.only or any(re.search(o, f"{m}/{n}") for o in options.only)]
    if options.list:
        print("\n".join(f"{m}/{n}" for m, n in wanted))
        return 0
    if os.geteuid() != 0:
        print("the migration tests need root", file=sys.stderr)
        return 2
    binary = os.path.abspath(options.migrate or os.path.join(options.build, "migrate", "migrate"))
    if not os.access(binary, os.X_OK):
        print(f"{binary} is not there: run scripts/build", file=sys.stderr)
        return 2
    top = tempfile.mkdtemp(prefix="mtest-")
    os.chmod(top, 0o755)
    context = cases.Context(binary, os.path.abspath(options.workloads or os.path.join(options.build, "tests", "workloads")),
                            top, options.send_arg, options.receive_arg, shared=options.jobs > 1 or options.not_alone)
    before = remains.snapshot()
    become_subreaper()
    parallel.interruptible()
    counts = None
    try:
        counts = run_all(options, context, wanted, top)
        left = [] if options.not_alone else remains.new_since(before, (top,))
        if left:
            print("FAIL nothing-left-behind\n  " + "\n  ".join(left))
            counts["FAIL"] += 1
    finally:
        # Logs of a failed case stay; those of an interrupted run do not.
        if not options.keep and not (counts and counts["FAIL"]):
            shutil.rmtree(top, ignore_errors=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped", flush=True)
    return 1 if counts["FAIL"] else 0


def run_all(options, context, wanted, top):
    """Prints a line for each case; gives the counts. A fresh process a case: namespaces and children of one do not reach the
    next, and it cleans up also when we are interrupted."""
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    jobs = [(m, n, os.path.join(top, f"{m}-{n}")) for m, n in wanted]
    with contextlib.closing(parallel.run(jobs, lambda job: one(context, *job), options.jobs, options.timeout)) as running:
        for (mode, name, folder), result in running:
            verdict, seconds, text = result or ("FAIL", 0.0, "the case's process died or hung" + kept_logs(folder))
            counts[verdict] += 1
            print(f"{verdict} {mode}/{name} ({seconds:.1f} s)" + (f": {text}" if text else ""), flush=True)
            if verdict == "FAIL" and options.fail_fast:
                break
    return counts


if __name__ == "__main__":
    sys.exit(main())

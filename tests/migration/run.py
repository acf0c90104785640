#!/usr/bin/env python3
"""Moves every workload and some real programs in every mode, and checks that nobody can tell the difference.

    run.py [--build DIR] [--only REGEX] [--mode MODE] [-j N] [--list]

One line a case; the log of a failed one is kept and its end printed. Closes with the counts."""
import argparse
import concurrent.futures
import glob
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from lib import remains, tool  # noqa: E402
from lib.process import Deadline, become_subreaper, descendants, kill_all  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (cases.programs.Unwell, tool.Failed, Deadline)


class TimeUp(Exception):
    pass


def one(arguments):
    """In a process of its own. Gives (mode, name, verdict, seconds, text)."""
    context, mode, name, folder, limit = arguments

    def on_alarm(*_):
        raise TimeUp(f"the case took more than {limit} s")
    become_subreaper()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(limit)
    started = time.monotonic()
    verdict, text = "PASS", ""
    try:
        cases.run_case(context, mode, name, folder)
    except cases.Skip as e:
        verdict, text = "SKIP", str(e)
    except EXPECTED as e:
        verdict, text = "FAIL", str(e)
    except TimeUp:
        verdict, text = "FAIL", traceback.format_exc(limit=-3)
    except Exception:
        verdict, text = "FAIL", traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
        kill_all([p for p in descendants(os.getpid()) if p != os.getpid()])
    if verdict == "FAIL":
        text += kept_logs(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return mode, name, verdict, time.monotonic() - started, text


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
                            top, options.send_arg, options.receive_arg, shared=options.jobs > 1)
    before = remains.snapshot()
    counts = run_all(options, context, wanted, top)
    left = remains.new_since(before, (top,))
    if left:
        print("FAIL nothing-left-behind\n  " + "\n  ".join(left))
        counts["FAIL"] += 1
    if not counts["FAIL"] and not options.keep:
        shutil.rmtree(top, ignore_errors=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped", flush=True)
    return 1 if counts["FAIL"] else 0


def run_all(options, context, wanted, top):
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    jobs = [(context, m, n, os.path.join(top, f"{m}-{n}"), options.timeout) for m, n in wanted]
    fork = multiprocessing.get_context("fork")
    # A fresh process a case: namespaces, children and alarms of one do not reach the next.
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as threads:
        def in_child(job):
            receive, give = fork.Pipe(duplex=False)
            p = fork.Process(target=lambda: give.send(one(job)))
            p.start()
            give.close()
            try:
                result = receive.recv() if receive.poll(options.timeout + 60) else None
            except EOFError:
                result = None
            p.join(10)
            if p.is_alive():
                p.kill()
            return result or (job[1], job[2], "FAIL", 0.0, "the case's process died or hung" + kept_logs(job[3]))
        for done in concurrent.futures.as_completed([threads.submit(in_child, j) for j in jobs]):
            mode, name, verdict, seconds, text = done.result()
            counts[verdict] += 1
            print(f"{verdict} {mode}/{name} ({seconds:.1f} s)" + (f": {text}" if text else ""), flush=True)
            if verdict == "FAIL" and options.fail_fast:
                threads.shutdown(cancel_futures=True, wait=True)
                break
    return counts


if __name__ == "__main__":
    sys.exit(main())

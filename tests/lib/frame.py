"""What stands around the cases of a driver: a folder for them, a count of verdicts, and a look at what they leave behind."""
import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback

from . import parallel, remains, tool
from .process import become_subreaper, descendants, kill_all
from .skip import Skip


@contextlib.contextmanager
def run_of_cases(options, prefix):
    """Gives the folder and the counts {verdict: number}. The folder stays if something failed, or with --keep."""
    become_subreaper()
    parallel.interruptible()
    before = remains.snapshot()
    top = tempfile.mkdtemp(prefix=prefix)
    os.chmod(top, 0o755)
    counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
    try:
        yield top, counts
    finally:
        left = [] if options.not_alone else remains.new_since(before, (top,))
        if left:
            print("FAIL nothing-left-behind: " + "; ".join(left))
            counts["FAIL"] += 1
        if not counts["FAIL"] and not options.keep:
            shutil.rmtree(top, ignore_errors=True)


def closing_line(counts):
    """Prints it; the driver's exit code."""
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped")
    return 1 if counts["FAIL"] else 0


def command(main):
    """Ends the process as the driver's `main` says; what Ctrl-C or SIGTERM ends did not fail."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def tell_cases(counts, jobs, function, workers, limit, top):
    """Runs the jobs, whose names come first; a line each. `function` gives (verdict, text, seconds)."""
    with contextlib.closing(parallel.run(jobs, function, workers, limit)) as cases:
        for (name, *_), result in cases:
            verdict, text, seconds = result or ("FAIL", f"the case's process died or hung\n  kept: {top}/{name}", 0.0)
            counts[verdict] += 1
            print(f"{verdict} {name} ({seconds:.1f} s): {text}", flush=True)


def one_case(start, folder, expected, keep=False, note="", tails=lambda folder: ""):
    """In the case's process: what `start` gives is run, looked at when it has ended, and swept up, whatever becomes of it. Gives
    (verdict, text, seconds, what was started). `expected`: exceptions that need no trace; `note` is said of every case, `tails` of
    the folder of one that failed."""
    began, verdict, text, case = time.monotonic(), "FAIL", "", None
    try:
        case = start()
        text = case.run()
        case.end_and_look()
        verdict = "PASS"
    except Skip as e:
        verdict, text = "SKIP", str(e)
    except expected as e:
        text = str(e)
    except Exception:
        text = traceback.format_exc(limit=-6)
    finally:
        if case:
            with contextlib.suppress(Exception):
                case.close()
            kill_all([p for p in descendants(os.getpid()) if p != os.getpid()])
            remains.sweep_cgroups(case.sessions())
    text += note
    if verdict == "FAIL":
        text += f"\n  kept: {folder}" + tails(folder)
    elif not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return verdict, text, time.monotonic() - began, case


def logs(*names):
    """Tails for one_case()."""
    def tails(folder):
        text = ""
        for name in names:
            if os.path.exists(f"{folder}/{name}"):
                text += f"\n  --- {name}\n" + "\n".join("  " + x for x in tool.tail(f"{folder}/{name}", 10).splitlines())
        return text
    return tails

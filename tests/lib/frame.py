"""What stands around the cases of a driver: a folder for them, a count of verdicts, and a look at what they leave behind."""
import contextlib
import os
import shutil
import tempfile

from . import parallel, remains
from .process import become_subreaper


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

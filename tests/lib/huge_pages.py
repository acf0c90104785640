"""khugepaged, which makes huge pages of a program's memory behind its back."""
import contextlib
import fcntl
import os

from .process import read

FOLDER = "/sys/kernel/mm/transparent_hugepage/khugepaged"
BUSIEST = {"scan_sleep_millisecs": "0", "alloc_sleep_millisecs": "0", "pages_to_scan": "1000000", "max_ptes_none": "511"}


@contextlib.contextmanager
def khugepaged_busy():
    """At its busiest, and afterwards as before, whatever happens. Gives why it is not, or ""."""
    with contextlib.ExitStack() as undo:
        yield make_busy(undo)


def make_busy(undo):
    try:
        folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        return f"{FOLDER}: {e.strerror}"
    undo.callback(os.close, folder)
    try:
        # One at a time: the second would take the first one's values for those to be put back.
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name, value in BUSIEST.items():
            before = read(f"{FOLDER}/{name}").strip()
            write(name, value)
            undo.callback(write, name, before)
    except BlockingIOError:
        return "is busy for another run"
    except OSError as e:
        return f"{FOLDER}: {e.strerror}"
    return "is off: no transparent huge pages" if "[never]" in read(f"{FOLDER}/../enabled") else ""


def write(name, value):
    with open(f"{FOLDER}/{name}", "w") as f:
        f.write(value)


def collapsed():
    """How many huge pages it has made."""
    return int(read(f"{FOLDER}/pages_collapsed", "0") or 0)

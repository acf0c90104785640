"""khugepaged, which makes huge pages of a program's memory behind its back."""
import contextlib

from .process import read

FOLDER = "/sys/kernel/mm/transparent_hugepage/khugepaged"
BUSIEST = {"scan_sleep_millisecs": "0", "alloc_sleep_millisecs": "0", "pages_to_scan": "1000000", "max_ptes_none": "511"}


@contextlib.contextmanager
def khugepaged_busy():
    """At its busiest, and afterwards as before. Gives why it is not, or ""."""
    before, why = {}, ""
    try:
        for name, value in BUSIEST.items():
            old = read(f"{FOLDER}/{name}").strip()
            try:
                with open(f"{FOLDER}/{name}", "w") as f:
                    f.write(value)
                before[name] = old
            except OSError as e:
                why = f"{FOLDER}/{name}: {e.strerror}"
        if "[never]" in read(FOLDER + "/../enabled"):
            why = "transparent huge pages are off"
        yield why
    finally:
        for name, value in before.items():
            with open(f"{FOLDER}/{name}", "w") as f:
                f.write(value)


def collapsed():
    """How many huge pages it has made."""
    return int(read(f"{FOLDER}/pages_collapsed", "0") or 0)

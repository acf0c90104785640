"""Cases of postcopy.py: shared memory that comes late, in a pool of processes that end and are forked all the time."""
import os

from lib import tool
from lib.memory_limit import MemoryLimit
from lib.process import read
from lib.suite import expect
from postcopy_move import Move, cut, kill, kill_sender

POOL = ("pool", "48")
PAGES = 48 * 256 * 6 // 7  # that exist: one of seven was given back


def case(act, mode="postcopy", **ending):
    """`act`: None, or what is done to those who bring the pages."""
    def run(context, folder):
        move = Move(context, folder, mode, POOL)
        try:
            if act:
                act(move)
            move.arrives(**ending)
            seen = {e["event"]: e for e in tool.events(read(move.log)) if "event" in e}
            late = seen["switch"]["pages"]
            if mode == "postcopy":
                expect(late > PAGES * 3 // 4, f"only {late} pages came late, of {PAGES}")
            else:
                expect(late > 0, "no pages came late")
        finally:
            move.close()
    return run


def counted(context, folder):
    """A limit of the program's cgroup is one for its shared memory, too, before and after that has come: whoever brings it is not
    in that cgroup."""
    limit = MemoryLimit(f"shared-{os.getpid()}")
    used = lambda: int(read(f"{limit.folder}/memory.{'current' if limit.v2 else 'usage_in_bytes'}")) >> 20
    move = None
    try:
        move = Move(context, folder, "postcopy", POOL, receiver_options=("--cgroup", f"/shared-{os.getpid()}"))
        late = PAGES * 4096 * 3 // 4 >> 20
        expect(used() >= late, f"its cgroup has {used()} MiB in memory while {late} and more are coming")
        move.arrives()
        expect(used() >= late, f"its cgroup has {used()} MiB in memory now that {late} and more have come")
    finally:
        if move:
            move.close()
        limit.close()


CASES = {
    "shared/undisturbed": case(None),
    "shared/counted": counted,
    "shared/hybrid": case(None, "hybrid"),
    "shared/killed/lazy-daemon": case(kill("lazy_daemon", 5)),
    "shared/killed/holders": case(kill("holders", 5)),
    "shared/killed/sender": case(kill_sender, code=None),
    "shared/cut": case(cut(2)),
}

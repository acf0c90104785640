"""Cases of postcopy.py: shared memory that comes late, in a pool of processes that end and are forked all the time."""
from lib import tool
from lib.process import read
from lib.suite import expect

POOL = ("pool", "48")
PAGES = 48 * 256 * 6 // 7  # that exist: one of seven was given back


def case(act, mode, move_of, **ending):
    """`act`: None, or what is done to those who bring the pages."""
    def run(context, folder):
        move = move_of(context, folder, mode, POOL)
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


def cases(move_of, kill, cut, kill_sender):
    done = {"undisturbed": None, "killed/lazy-daemon": kill("lazy_daemon", 5), "killed/holders": kill("holders", 5), "cut": cut(2)}
    return {**{f"shared/{name}": case(act, "postcopy", move_of) for name, act in done.items()},
            "shared/killed/sender": case(kill_sender, "postcopy", move_of, code=None), "shared/hybrid": case(None, "hybrid", move_of)}

"""How late timers are because of a move: a thousand of all kinds in a tree of 200 processes. What they are late by without one
(so many processes take turns on few processors) is measured before; a move may add its downtime and a millisecond."""
import contextlib
import os

import cases
from lib import netns
from lib.process import find_moved, read, wait_for
from lib.suite import Skip

PROCESSES, OF_TWO_KINDS = 200, 2
PARTS = ("freeze_ms", "shells_ms", "pages_ms", "restore_ms", "handover_ms")
QUIET = 3  # checks without a move: in each, every timer comes once more


def latest_ms(program, folder):
    """Since the last time, of the worst timer; each has come once more when this returns."""
    program.check()
    return int(read(os.path.join(folder, "program", "latest"))) / 1e6


def measure(hosts, mode):
    """(worst without a move, worst over the move, downtime, its parts), milliseconds."""
    folder = hosts.new_folder(f"timers-{mode}")
    context = cases.Context(hosts.binary, os.path.join(hosts.build, "tests", "workloads"), None)
    cases.WORKLOADS["bench"] = ("many_timers", [str(PROCESSES), str(OF_TWO_KINDS)])
    with contextlib.closing(cases.Move(context, "bench", folder, netns.OTHER_CLOCKS, ())) as move:
        quiet = max(latest_ms(move.program, folder) for _ in range(QUIET))
        comm = move.program.comm()
        code, events, out = move.send(("--mode", mode))
        if code != 0:
            raise Skip(f"send exited {code}: {out.strip()[-300:]}")
        move.program.reap_old(move.receiver.pid)
        copy = wait_for(lambda: find_moved(move.program.inner, comm), "the tree at the destination", 20)
        move.program.moved_to(copy, move.inside)
        over = latest_ms(move.program, folder)
        move.end_receiver()
        moved = next(e for e in reversed(events) if "downtime_ms" in e and "freeze_ms" in e)
        parts = ", ".join(f"{k[:-3]} {v:.0f}" for k, v in moved.items() if k.endswith("_ms") and k in PARTS)
        return quiet, over, moved["downtime_ms"], parts


def rows(hosts, repeat):
    out = ["| mode | latest timer without a move | latest over the move | downtime | later than both | parts of it |", "| --- " * 6 + "|"]
    for n in range(repeat):
        for mode in ("precopy", "postcopy"):
            try:
                quiet, over, downtime, parts = measure(hosts, mode)
                out.append(f"| {mode} | {quiet:.1f} ms | {over:.1f} ms | {downtime:.1f} ms | {over - quiet - downtime:.1f} ms | {parts} |")
            except Skip as e:
                out.append(f"| {mode} | not measured: {e} | | | | |")
            print(out[-1], flush=True)
    return out

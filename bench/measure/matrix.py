"""The scenario matrix: memory x pages written a second x mode, a move each, repeated."""
import csv
import json
import os
import sys

from . import moves
from .workload import Task

SIZES = (64, 256, 1024, 4096)        # MiB
RATES = (0, 1_000, 10_000, 100_000, None)  # pages a second; None: as many as the program can, beyond any bandwidth
MODES = ("precopy", "stop-copy", "postcopy", "hybrid")
QUICK_MODES = ("precopy", "stop-copy")
QUICK_SIZES, QUICK_RATES = (64, 512), (0, 10_000, None)
SPARE = 1.5  # a host holds the program twice, once for each "host", and what the kernel needs besides


class Results:
    """All moves of a run. With a folder each goes there at once, so that what was measured outlives a run that breaks off: its
    row to moves.csv, and the sender's events to events/N.jsonl, N being the number of the row."""

    def __init__(self, folder=None):
        self.moves = []
        self.folder = folder and os.path.join(folder, "events")
        if folder:
            os.makedirs(self.folder, exist_ok=True)
        self.file = open(os.path.join(folder, "moves.csv"), "w", newline="") if folder else None
        self.writer = csv.DictWriter(self.file, moves.COLUMNS) if self.file else None
        if self.writer:
            self.writer.writeheader()

    def add(self, move):
        self.moves.append(move)
        if self.writer:
            self.writer.writerow(move.row)
            self.file.flush()
            with open(os.path.join(self.folder, f"{len(self.moves)}.jsonl"), "w") as f:
                f.writelines(json.dumps(event) + "\n" for event in move.events)
        print(line_of(move), flush=True)

    def of(self, scenario):
        return [m for m in self.moves if m["scenario"] == scenario]

    def close(self):
        if self.file:
            self.file.close()


def line_of(move):
    """What one sees while it runs."""
    row = move.row
    head = f"{row['scenario']}: {row['memory_mib']} MiB, {row['rate']}, {row['mode']} {row['options']}".rstrip()
    if move["memory_equal"] == 0:
        return f"{head}: THE MEMORY DIFFERS: {row['reason']}"
    if not move.moved:
        return f"{head}: {row['outcome']}: {row.get('reason')}"
    estimate = f", estimated {row['estimate_ms']:.1f} ms" if row.get("estimate_ms") is not None else ""
    return f"{head}: downtime {row['seen_ms']:.1f} ms{estimate}, {row['rounds']} rounds, {row['total_ms']:.0f} ms in all"


def memory_mib():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:")) // 1024


def cells(sizes, rates, modes=MODES):
    """What fits into this machine; says what does not."""
    for mib in sizes:
        if mib * 2 * SPARE > memory_mib():
            print(f"matrix: left out {mib} MiB: both hosts need it on this machine, which has {memory_mib()} MiB free", file=sys.stderr)
            continue
        for rate in rates:
            for mode in modes:
                yield Task(mib, rate), mode


def warm_up(hosts):
    """The first move of a pair of hosts tells the estimates what things cost here."""
    moves.move(hosts, Task(64, 1_000), scenario="warm-up")


def run(hosts, results, sizes=SIZES, rates=RATES, modes=MODES, repeat=3, scenario="matrix"):
    """Repeats go round all cells, so that a disturbance does not hit one cell alone."""
    todo = list(cells(sizes, rates, modes))
    for n in range(repeat):
        for task, mode in todo:
            results.add(moves.move(hosts, task, mode, scenario=scenario, repeat=n))

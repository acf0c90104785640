"""One live move of one program, and all that can be said about it."""
import os
import statistics

from lib import programs, tool
from lib.process import Deadline, find_moved, kill_tree, wait_for

from . import baseline
from .workload import longest_gap, rate_between, stalls, Writer

BEFORE, AFTER = 1.0, 0.7  # seconds for which the program is watched before and after

# Columns of the CSV file; times in ms, speeds in bytes/s, writes in pages/s.
COLUMNS = (
    "scenario", "memory_mib", "rate", "whole_pages", "mode", "options", "repeat", "outcome", "reason", "estimate_ms", "fixed_ms", "dirty_ms",
    "dirty_pages", "downtime_ms", "seen_ms", "freeze_ms", "shells_ms", "pages_ms", "restore_ms", "handover_ms", "rounds", "total_ms",
    "rounds_bytes", "stopped_bytes", "wire_bytes", "round0_bytes", "round0_ms", "round0_bandwidth", "raw_tls", "plain_copy", "round0_ratio",
    "written_before", "written_during", "written_after", "during_ratio", "gap_in_rounds_ms", "cpu_share", "late_bytes", "late_requested",
    "whole_ms", "stalls_ms", "memory_equal")
LATE = ("postcopy", "hybrid", "auto")  # modes in which pages come when the program runs
PARTS = ("freeze_ms", "shells_ms", "pages_ms", "restore_ms", "handover_ms")


class Move:
    """`row`: COLUMNS by name, missing ones None; `events`: of the sender; `samples`: of the program."""

    def __init__(self, row, events, samples):
        self.row, self.events, self.samples = row, events, samples

    def __getitem__(self, column):
        return self.row.get(column)

    @property
    def moved(self):
        return self["outcome"] == "moved"


def move(hosts, task, mode="precopy", options=(), scenario="", repeat=0):
    """Starts a program, moves it, watches it, ends it. A failed move is a row too, and so is one that could not be watched to
    its end."""
    row = {"scenario": scenario, "memory_mib": task.mib, "rate": task.rate_name(), "whole_pages": int(task.whole), "mode": mode,
           "options": " ".join(options), "repeat": repeat}
    try:
        late = mode in LATE
        raw, copy = baseline.raw_tls(hosts.build), late and baseline.plain_copy(hosts, task.mib)
        found = watched_move(hosts, task, mode, options, row)
        add_baseline(row, statistics.mean((raw, baseline.raw_tls(hosts.build))))
        if late:
            row["plain_copy"] = round(statistics.mean((copy, baseline.plain_copy(hosts, task.mib))))
        return found
    except (tool.Failed, programs.Unwell, Deadline, OSError) as e:
        return Move({**row, "outcome": "not measured", "reason": str(e)}, [], [])


def add_baseline(row, raw):
    """What was measured before the program began and after it had ended."""
    row["raw_tls"] = round(raw)
    if row.get("round0_bandwidth"):
        row["round0_ratio"] = round(row["round0_bandwidth"] / raw, 3)


def watched_move(hosts, task, mode, options, row):
    folder = hosts.new_folder("move")
    program = receiver = None
    try:
        program = Writer(hosts.build, task, os.path.join(folder, "program"), hosts.on_source(), f"{hosts.short}-source")
        program.ready()
        program.run_on(BEFORE)
        program.remember()
        receiver = hosts.tool.receive(hosts.network, "destination", hosts.keys)
        comm = program.comm()
        code, events, out = hosts.tool.send(hosts.network, "source", "destination", hosts.keys, program.pid,
                                            options=["--mode", mode, *hosts.report_options(), *options], timeout=300)
        if code == 0:
            program.reap_old(receiver.pid)
            pid = wait_for(lambda: find_moved(program.inner, comm), "the tree at the destination", 10)
            program.moved_to(pid, f"{hosts.short}-destination")
        program.run_on(AFTER)
        samples = program.samples()
        if not events:
            raise tool.Failed(f"send exited {code}: {out.strip()[-500:]}")
        row.update(outcome=outcome(code, events))
        row.update(of_events(events))
        row.update(of_program(samples, events))
        try:
            program.check()
            row["memory_equal"] = 1
        except programs.Unwell as e:
            row.update(memory_equal=0, reason=str(e))
        return Move(row, events, samples)
    finally:
        if program is not None:
            program.end()
        if receiver is not None and receiver.poll() is None:
            kill_tree(receiver.pid)
        if receiver is not None:
            receiver.wait(timeout=10)


def outcome(code, events):
    if code == 0:
        return "moved"
    return "cancelled" if last(events, "decide", decision="cancel") else f"exit {code}"


def last(events, name, **fields):
    found = [e for e in events if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]
    return found[-1] if found else None


def of_events(events):
    """What the sender's own events tell."""
    row = {"total_ms": round((events[-1]["time"] - events[0]["time"]) * 1000, 1)}
    done, decided, throttled = (last(events, name) for name in ("done", "decide", "throttle"))
    if done is not None:
        row.update({k: done.get(k) for k in ("downtime_ms", *PARTS, "rounds", "rounds_bytes", "wire_bytes")})
        row["stopped_bytes"] = done.get("bytes")
    else:
        row["reason"] = events[-1]["text"]
    if decided is not None:
        row.update({k: decided.get(k) for k in ("estimate_ms", "fixed_ms", "dirty_ms", "dirty_pages")})
        row["reason"] = decided["reason"]
    if throttled is not None:
        row["cpu_share"] = min(e["cpu_share"] for e in events if e["event"] == "throttle")
    switch, whole = last(events, "switch"), last(events, "whole")
    if whole is not None:
        late = switch["pages"] if switch else 0  # nothing was left to follow
        row.update({"late_bytes": late * 4096, "late_requested": whole["pages_requested"], "whole_ms": whole["ms"]})
    first = next((e for e in events if e["event"] == "round" and e.get("n") == 0), None)
    if first is not None:
        row.update({"round0_bytes": first["bytes"], "round0_ms": first["ms"],
                    "round0_bandwidth": round(first["bytes"] / max(first["ms"], 1e-3) * 1000)})
    return row


def stopped_between(events):
    """When the program stood still, by the sender's events: (begin, end); or None."""
    gate = last(events, "gate-open")
    return (gate["time"] - gate["downtime_ms"] / 1000, gate["time"]) if gate else None


def of_program(samples, events):
    """What the program saw of it."""
    began = next((e["time"] for e in events if e["event"] == "begin"), events[0]["time"])
    ended = events[-1]["time"]
    stopped = stopped_between(events)
    rounds_end = stopped[0] if stopped else ended
    row = {"seen_ms": round(longest_gap(samples, began, ended + AFTER) * 1000, 2),
           "gap_in_rounds_ms": round(longest_gap(samples, began, rounds_end) * 1000, 2)}
    if stopped and last(events, "whole"):
        row["stalls_ms"] = round(stalls(samples, stopped[1], ended, 0.003) * 1000, 2)
    before = rate_between(samples, began - BEFORE, began)
    during = rate_between(samples, began, rounds_end)
    after = rate_between(samples, stopped[1] if stopped else ended, ended + AFTER)
    row.update({k: None if v is None else round(v) for k, v in
                (("written_before", before), ("written_during", during), ("written_after", after))})
    if before and during is not None:
        row["during_ratio"] = round(during / before, 3)
    return row

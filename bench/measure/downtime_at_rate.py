"""Downtime of 1 GiB against that of 64 MiB, both written at 10,000 random pages a second: it must not grow with memory."""
from . import moves, table
from .workload import Task

RATE, SMALL, LARGE = 10_000, 64, 1024
SCENARIO = "downtime-at-rate"


def run(hosts, results, repeat):
    """In turns, so that both meet the same machine."""
    for n in range(repeat):
        for mib in (LARGE, SMALL):
            results.add(moves.move(hosts, Task(mib, RATE), scenario=SCENARIO, repeat=n))


def rows(found):
    out = ["| memory | moves | downtime (as the program saw it), median | greatest | estimate | round 0 | raw TLS | round 0 / raw TLS | "
           "writes in rounds / before | longest gap in rounds |", "| --- " * 10 + "|"]
    groups = table.grouped(found, "memory_mib")
    for (mib,), group in groups.items():
        moved = [m for m in group if m.moved]
        if not moved:
            out.append(f"| {mib} MiB | {table.of_outcomes(group)} |" + " - |" * 8)
            continue
        out.append(f"| {mib} MiB | {table.of_outcomes(group)} | {table.ms(table.median(moved, 'seen_ms'))} | "
                   f"{table.ms(max(table.values(moved, 'seen_ms')))} | {table.ms(table.median(moved, 'estimate_ms'))} | "
                   f"{table.size(table.median(moved, 'round0_bandwidth'))}/s | {table.size(table.median(moved, 'raw_tls'))}/s | "
                   f"{table.ratio(table.median(moved, 'round0_ratio'))} | {table.ratio(table.median(moved, 'during_ratio'))} | "
                   f"{table.ms(max(table.values(moved, 'gap_in_rounds_ms')))} |")
    large, small = (table.median([m for m in groups.get((mib,), []) if m.moved], "seen_ms") for mib in (LARGE, SMALL))
    if large and small:
        out += ["", f"Downtime of {LARGE} MiB / of {SMALL} MiB: **{large / small:.2f}** (aims: at most 1.5, and 50 ms; round 0 at least 0.7 of "
                    "raw TLS; writes in rounds at least 0.9 of before)."]
    return out

"""Post-copy and hybrid of a program that writes 10,000 random pages a second, and `auto` of one that writes faster than the
network carries: the switch, how soon it is whole, and how long the program stood still for want of a page."""
from . import moves, table
from .workload import Task

RATE, MIB, FAST_MIB, FAST = 10_000, 1024, 256, 500_000
SCENARIO = "late-memory"


def run(hosts, results, repeat, mib=MIB):
    """In turns, so that all meet the same machine."""
    for n in range(repeat):
        for mode in ("postcopy", "hybrid"):
            results.add(moves.move(hosts, Task(mib, RATE), mode, scenario=SCENARIO, repeat=n))
        results.add(moves.move(hosts, Task(FAST_MIB, FAST, sequential=True, whole=True), "auto", options=["--allow-postcopy"],
                               scenario=SCENARIO, repeat=n))


def rows(found):
    """`floor`: the late bytes at the speed at which memory is copied by TLS over the same cable, and nothing else is done."""
    out = ["| memory | pages/s | mode | moves | switch (by the sender) | late | of it asked for | whole after | whole / floor | whole / raw TLS | "
           "stalls over 3 ms, in sum | longest | memory equal |", "| --- " * 13 + "|"]
    for (mib, rate, mode), group in table.grouped(found, "memory_mib", "rate", "mode").items():
        moved = [m for m in group if m.moved]
        if not moved:
            out.append(f"| {mib} MiB | {rate} | {mode} | {table.of_outcomes(group)} |" + " - |" * 9)
            continue
        late, whole, copy, raw = (table.median(moved, c) for c in ("late_bytes", "whole_ms", "plain_copy", "raw_tls"))
        ratios = [table.ratio(whole / (late / speed * 1000) if late else None) for speed in (copy, raw)]
        out.append(f"| {mib} MiB | {rate} | {mode} | {table.of_outcomes(group)} | {table.ms(table.median(moved, 'downtime_ms'))} | "
                   f"{table.size(late)} | {table.median(moved, 'late_requested'):.0f} pages | {table.ms(whole)} | "
                   f"{' | '.join(ratios)} | {table.ms(table.median(moved, 'stalls_ms'))} | {table.ms(table.median(moved, 'seen_ms'))} | "
                   f"{'yes' if all(m['memory_equal'] == 1 for m in moved) else 'NO'} |")
    return out

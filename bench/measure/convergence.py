"""What becomes of a program that writes faster than can be sent: 2 GB/s, its memory from beginning to end and again."""
from . import moves, table
from .workload import PAGE, Task

SCENARIO = "no-convergence"
CHOICES = ("stop", "throttle", "cancel")
MIB = 256
RATE = 2_000_000_000 // PAGE


def run(hosts, results, repeat):
    for n in range(repeat):
        for choice in CHOICES:
            results.add(moves.move(hosts, Task(MIB, RATE, sequential=True, whole=True), options=["--on-no-convergence", choice],
                                   scenario=SCENARIO, repeat=n))


def rows(found):
    out = ["| --on-no-convergence | outcome | written before | in rounds / before | least CPU share | rounds | downtime (as the program saw "
           "it) | estimate | memory equal | last decision |", "| --- " * 10 + "|"]
    for (choice,), group in table.grouped(found, "options").items():
        before = table.median(group, "written_before")
        equal = sum(m["memory_equal"] == 1 for m in group)
        moved = [m for m in group if m.moved]
        out.append(f"| {choice.split()[-1]} | {table.of_outcomes(group) if len(moved) < len(group) else f'{len(group)} moved'} | "
                   f"{'-' if before is None else f'{before * PAGE / 1e9:.2f} GB/s'} | {table.ratio(table.median(group, 'during_ratio'))} | "
                   f"{table.ratio(min(table.values(group, 'cpu_share'), default=None))} | {median_rounds(group)} | "
                   f"{table.ms(table.median(moved, 'seen_ms'))} | {table.ms(table.median(moved, 'estimate_ms'))} | {equal} of {len(group)} | "
                   f"{group[-1]['reason'] or '-'} |")
    return out


def median_rounds(group):
    counts = [sum(e["event"] == "round" for e in m.events) for m in group]
    return sorted(counts)[len(counts) // 2]

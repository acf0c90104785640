"""How well the estimate at the decision to stop foretold the downtime."""
from . import table

SHARE, MS = 0.30, 5.0  # an estimate is right within either


def right(estimate, outcome):
    return abs(estimate - outcome) <= max(MS, SHARE * outcome)


def judged(moves):
    """The moves that have both an estimate and an outcome."""
    return [m for m in moves if m.moved and m["mode"] == "precopy" and m["estimate_ms"] is not None]


def rows(moves):
    """A Markdown table: a line a size and rate, and the sum."""
    out = ["| memory | pages written/s | moves | estimate | outcome | outcome / estimate | right |", "| --- " * 7 + "|"]
    found = judged(moves)
    for (mib, rate), group in table.grouped(found, "memory_mib", "rate").items():
        good = sum(right(m["estimate_ms"], m["downtime_ms"]) for m in group)
        ratios = [m["downtime_ms"] / m["estimate_ms"] for m in group]
        out.append(f"| {mib} MiB | {rate} | {len(group)} | {table.ms(table.median(group, 'estimate_ms'))} | "
                   f"{table.ms(table.median(group, 'downtime_ms'))} | {min(ratios):.2f} to {max(ratios):.2f} | {good} of {len(group)} |")
    good = sum(right(m["estimate_ms"], m["downtime_ms"]) for m in found)
    if found:
        out += ["", f"Right (within 30 % of the outcome or 5 ms): **{good} of {len(found)}**, {10 * good / len(found):.1f} of ten."]
    return out

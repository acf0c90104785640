"""Markdown tables of what was measured: medians, and ratios within one run."""
import statistics


def values(moves, column):
    return [m[column] for m in moves if m[column] is not None]


def median(moves, column):
    found = values(moves, column)
    return statistics.median(found) if found else None


def ms(value):
    if value is None:
        return "-"
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def size(value):
    if value is None:
        return "-"
    for unit, divisor in (("GiB", 2**30), ("MiB", 2**20)):
        if value >= divisor:
            return f"{value / divisor:.2f} {unit}" if unit == "GiB" else f"{value / divisor:.0f} {unit}"
    return f"{value / 1024:.0f} KiB"


def ratio(value):
    return "-" if value is None else f"{value:.2f}"


def grouped(moves, *columns):
    """{values of the columns: moves}, in the order of their first move."""
    found = {}
    for m in moves:
        found.setdefault(tuple(m[c] for c in columns), []).append(m)
    return found


def of_outcomes(group):
    """"3" moves, or "2 moved, 1 cancelled"."""
    counts = {}
    for m in group:
        counts[m["outcome"]] = counts.get(m["outcome"], 0) + 1
    return str(len(group)) if set(counts) == {"moved"} else ", ".join(f"{n} {what}" for what, n in counts.items())


def matrix(moves):
    """One line a cell of the matrix."""
    out = ["| memory | pages written/s | mode | moves | downtime (as the program saw it) | estimate | rounds | in all | sent in rounds | "
           "sent while stopped | round 0 / raw TLS | writes in rounds / before | after / before |", "| --- " * 13 + "|"]
    for (mib, rate, mode), group in grouped(moves, "memory_mib", "rate", "mode").items():
        moved = [m for m in group if m.moved]
        before = median(moved, "written_before")
        after = median(moved, "written_after")
        out.append(f"| {mib} MiB | {rate} | {mode} | {of_outcomes(group)} | {ms(median(moved, 'seen_ms'))} | "
                   f"{ms(median(moved, 'estimate_ms'))} | {median(moved, 'rounds') or 0:.0f} | {ms(median(moved, 'total_ms'))} | "
                   f"{size(median(moved, 'rounds_bytes') or None)} | {size(median(moved, 'stopped_bytes'))} | "
                   f"{ratio(median(moved, 'round0_ratio'))} | {ratio(median(moved, 'during_ratio')) if before else '-'} | "
                   f"{ratio(after / before) if before and after is not None else '-'} |")
    return out


def stopped_bound(moves):
    """Stop-copy against raw TLS: the aim is 1.3 x (bytes / raw TLS + 50 ms)."""
    out = ["| memory | downtime | of it freeze | of it pages | sent | raw TLS | bytes / raw TLS + 50 ms | ratio (aim: 1.3 at most) |",
           "| --- " * 8 + "|"]
    for (mib,), group in grouped([m for m in moves if m.moved and m["mode"] == "stop-copy"], "memory_mib").items():
        speed, sent, downtime = (median(group, c) for c in ("raw_tls", "stopped_bytes", "downtime_ms"))
        base = sent / speed * 1000 + 50
        out.append(f"| {mib} MiB | {ms(downtime)} | {ms(median(group, 'freeze_ms'))} | {ms(median(group, 'pages_ms'))} | {size(sent)} | "
                   f"{size(speed)}/s | {ms(base)} | {downtime / base:.2f} |")
    return out

"""The plots: what each shows, from the moves of a run."""
import os

from . import estimates, table
from .matrix import RATES
from .moves import last, stopped_between
from .svg import COLOURS, Axis, Figure, Panel
from .workload import PAGE

TOP, LEFT, RIGHT = 60, 92, 24


def rate_text(rate):
    return "as fast as it can" if str(rate) == "full speed" else f"{int(rate):,} pages/s"


def rates_of(moves):
    """In the order of the matrix, with the same colour in each plot."""
    all_rates = list(dict.fromkeys([*(str(r) for r in RATES if r is not None), "full speed", *(m["rate"] for m in moves)]))
    there = {m["rate"] for m in moves}
    return {rate: COLOURS[i % len(COLOURS)] for i, rate in enumerate(all_rates) if rate in there}


def sizes_of(moves):
    return sorted({m["memory_mib"] for m in moves})


def size_name(mib):
    return f"{mib} MiB" if mib < 1024 else f"{mib // 1024} GiB"


def over_memory(panel, moves, sizes, colours, value):
    """A line a rate: medians, whiskers from least to most."""
    for rate, css in colours.items():
        points = []
        for i, mib in enumerate(sizes):
            found = [v for m in moves if m["rate"] == rate and m["memory_mib"] == mib and (v := value(m)) is not None]
            if not found:
                continue
            middle = sorted(found)[len(found) // 2]
            points.append((i, middle))
            panel.whisker(i, min(found), max(found), css)
            panel.dot(i, middle, css, f"{size_name(mib)}, {rate_text(rate)}: {middle:.3g} ({len(found)} moves)")
        panel.line(points, css)


def downtime(moves, path):
    moves = [m for m in moves if m.moved]
    modes = [mode for mode in ("precopy", "stop-copy", "postcopy", "hybrid") if any(m["mode"] == mode for m in moves)]
    sizes, colours = sizes_of(moves), rates_of(moves)
    if not moves:
        return
    width, height = 380, 320
    figure = Figure(LEFT + len(modes) * (width + 90) - 90 + RIGHT, "downtime over memory")
    y = Axis("downtime as the program saw it, ms", [m["seen_ms"] for m in moves], "log")
    for i, mode in enumerate(modes):
        x = Axis("memory of the program", [], "names", [size_name(s) for s in sizes])
        panel = Panel(figure, f"Downtime, --mode {mode}", x, y, LEFT + i * (width + 90), TOP, width, height)
        over_memory(panel, [m for m in moves if m["mode"] == mode], sizes, colours, lambda m: m["seen_ms"])
    figure.legend(LEFT, TOP + height + 72, [(css, rate_text(rate)) for rate, css in colours.items()])
    figure.text(LEFT, 22, "Median; bars from least to most. Random pages, each rewritten in two words.")
    figure.save(path)


def estimate(moves, path):
    found = estimates.judged(moves)
    if not found:
        return
    colours = rates_of(found)
    values = [v for m in found for v in (m["estimate_ms"], m["downtime_ms"])]
    x, y = Axis("estimate at the decision to stop, ms", values, "log"), Axis("downtime as it came out, ms", values, "log")
    side = 420
    figure = Figure(LEFT + side + RIGHT + 40, "estimate and outcome")
    panel = Panel(figure, "Estimated downtime and outcome", x, y, LEFT, TOP, side, side)
    steps = [x.low * (x.high / x.low)**(i / 80) for i in range(81)]
    # Right: |estimate - outcome| <= max(5 ms, 30 % of the outcome).
    highest = [(e, max(e + estimates.MS, e / (1 - estimates.SHARE))) for e in steps]
    lowest = [(e, max(min(e - estimates.MS, e / (1 + estimates.SHARE)), y.low)) for e in steps]
    panel.band(highest + lowest[::-1])
    panel.figure.add(f'<polyline class="aim" points="{panel.points([(x.low, x.low), (x.high, x.high)])}"/>')
    for m in found:
        panel.dot(m["estimate_ms"], m["downtime_ms"], colours[m["rate"]],
                  f"{size_name(m['memory_mib'])}, {rate_text(m['rate'])}: {m['estimate_ms']:.1f} ms, was {m['downtime_ms']:.1f} ms")
    good = sum(estimates.right(m["estimate_ms"], m["downtime_ms"]) for m in found)
    figure.text(LEFT, 22, f"{good} of {len(found)} moves are within the band.")
    figure.legend(LEFT, TOP + side + 72, [(css, rate_text(rate)) for rate, css in colours.items()] + [("band", "within 30 % or 5 ms")])
    figure.save(path)


def throughput(moves, path):
    moves = [m for m in moves if m["mode"] == "precopy" and m["during_ratio"] is not None and m["written_before"]]
    if not moves:
        return
    sizes, colours = sizes_of(moves), rates_of(moves)
    width, height = 560, 300
    figure = Figure(LEFT + width + RIGHT, "throughput of the program during rounds")
    x = Axis("memory of the program", [], "names", [size_name(s) for s in sizes])
    y = Axis("pages written/s in rounds ÷ before", [m["during_ratio"] for m in moves], least_most=1.0)
    panel = Panel(figure, "What the program gets done during rounds", x, y, LEFT, TOP, width, height)
    panel.figure.add(f'<line class="aim" x1="{LEFT}" x2="{LEFT + width}" y1="{panel.py(0.9):.1f}" y2="{panel.py(0.9):.1f}"/>')
    over_memory(panel, moves, sizes, colours, lambda m: m["during_ratio"])
    figure.text(LEFT, 22, "Median; bars from least to most. Hosts and program share the processors.")
    figure.legend(LEFT, TOP + height + 72, [(css, rate_text(rate)) for rate, css in colours.items()] + [("aim", "aim: 0.9")])
    figure.save(path)


def buckets(samples, begin, end, seconds):
    """(time, pages a second) in steps; where nothing was noted, the program did nothing."""
    points, at, i = [], begin, 0
    while at < end and i < len(samples) - 1:
        while i < len(samples) - 1 and samples[i].now < at:
            i += 1
        j = i
        while j < len(samples) - 1 and samples[j].now < at + seconds:
            j += 1
        if j > i and samples[j].now - samples[i].now < 3 * seconds:
            points.append((at - begin + seconds / 2, (samples[j].written - samples[i].written) / (samples[j].now - samples[i].now)))
        else:
            points.append((at - begin + seconds / 2, 0.0))
        at += seconds
    return points


def time_line(move, path):
    """One move: what the program wrote, over the rounds and the time in which it stood still."""
    stopped = stopped_between(move.events)
    if stopped is None or not move.samples:
        return
    rounds = [e for e in move.events if e["event"] == "round"]
    zero = next((e["time"] for e in move.events if e["event"] == "begin"), move.events[0]["time"]) - 0.3
    end = min(max(stopped[1], move.events[-1]["time"]) + 0.4, move.samples[-1].now)
    length = end - zero
    points = buckets(move.samples, zero, end, max(0.02, length / 150))
    most = max(v for _, v in points)
    gigabytes = most * PAGE >= 1e9 and move["whole_pages"]
    scale, unit = (PAGE / 1e9, "GB/s") if gigabytes else (1e-6, "million pages/s") if most >= 1e6 else (1e-3, "thousand pages/s")
    width, height = 780, 280
    figure = Figure(LEFT + width + RIGHT, "time line of a move")
    x, y = Axis("time, s", [length]), Axis(f"written by the program, {unit}", [v * scale for _, v in points])
    x.high = max(length, 1e-3)
    x.ticks = [t for t in x.ticks if t[0] <= x.high * 1.001]
    panel = Panel(figure, f"A move of {size_name(move['memory_mib'])}, {rate_text(move['rate'].replace(' in a row', ''))}, --mode {move['mode']}",
                  x, y, LEFT, TOP, width, height)
    for e in rounds:
        begin = e["time"] - e["ms"] / 1000 - zero
        panel.span(begin, e["time"] - zero, "round odd" if e["n"] % 2 else "round", f"round {e['n']}: {e['bytes'] / 2**20:.1f} MiB")
        name = f"round {e['n']}"
        if panel.px(e["time"] - zero) - panel.px(begin) > 8 * len(name) + 6:
            figure.text((panel.px(begin) + panel.px(e["time"] - zero)) / 2, TOP + 15, name, "middle")
    panel.span(stopped[0] - zero, stopped[1] - zero, "stopped", f"stopped for {move['downtime_ms']:.1f} ms")
    panel.line([(t, v * scale) for t, v in points], "c2")
    figure.text(LEFT, 22, f"Stood still for {move['seen_ms']:.1f} ms; {move['rounds']} rounds, {table.size(move['rounds_bytes'] or None)}; "
                          f"{table.size(move['stopped_bytes'])} while stopped.")
    figure.legend(LEFT, TOP + height + 72, [("c2", "written by the program"), ("round", "rounds"), ("stopped", "program stopped")])
    figure.save(path)


def pauses(move):
    """(seconds since the stop began, ms without a write) a sample, from shortly before the stop until shortly after all is here."""
    stopped, whole = stopped_between(move.events), last(move.events, "whole")
    zero = stopped[0]
    end = (whole["time"] if whole else stopped[1]) + 0.2
    return [(s.gap_end - zero, s.gap * 1000) for s in move.samples if zero - 0.2 <= s.gap_end <= end and s.gap > 0]


def stalls_over_time(moves, path):
    """Of each mode the move whose stalls are the median: how long the program did nothing, and when, while pages came late."""
    chosen = []
    for mode in ("postcopy", "hybrid", "auto"):
        found = sorted((m for m in moves if m["mode"] == mode and m.moved and m["stalls_ms"] is not None), key=lambda m: m["stalls_ms"])
        chosen += found[len(found) // 2:][:1]
    if not chosen:
        return
    width, height, gap = 780, 190, 106
    figure = Figure(LEFT + width + RIGHT, "stalls over time")
    for i, move in enumerate(chosen):
        points, (begin, end) = pauses(move), stopped_between(move.events)
        whole = last(move.events, "whole")["time"]
        x = Axis("time since the program was stopped, s", [max(t for t, _ in points)])
        y = Axis("longest pause in 10 ms, ms", [0.1, 100.0, *(v for _, v in points)], "log")
        x.high = max(t for t, _ in points)
        x.ticks = [t for t in x.ticks if t[0] <= x.high]
        panel = Panel(figure, f"--mode {move['mode']}, {size_name(move['memory_mib'])}, {rate_text(move['rate'].replace(' in a row', ''))}: "
                              f"stalls over 3 ms {table.ms(move['stalls_ms'])} in sum", x, y, LEFT, TOP + i * (height + gap), width, height)
        panel.span(end - begin, whole - begin, "round odd", f"pages came late for {(whole - end) * 1000:.0f} ms")
        panel.span(0, end - begin, "stopped", f"stopped for {move['downtime_ms']:.1f} ms")
        panel.figure.add(f'<line class="aim" x1="{LEFT}" x2="{LEFT + width}" y1="{panel.py(3):.1f}" y2="{panel.py(3):.1f}"/>')
        for t, v in points:
            if t >= 0:
                panel.dot(t, v, COLOURS[1] if v > 3 else COLOURS[2], f"{v:.2f} ms, {t:.3f} s after the stop began")
    figure.text(LEFT, 22, "Each dot is the longest time without a write in 10 ms of the program, by its own clock.")
    figure.legend(LEFT, TOP + len(chosen) * (height + gap) - gap + 72, [("stopped", "program stopped"), ("round odd", "pages come late"), ("aim", "3 ms")])
    figure.save(path)


def draw_all(results, folder):
    """Files in `folder`; gives their names."""
    matrix = results.of("matrix")
    downtime(matrix, os.path.join(folder, "downtime.svg"))
    estimate(matrix, os.path.join(folder, "estimate.svg"))
    throughput(matrix, os.path.join(folder, "throughput.svg"))
    stalls_over_time([*results.of("late-memory"), *matrix], os.path.join(folder, "stalls.svg"))
    for name, chosen in time_lines(results):
        time_line(chosen, os.path.join(folder, f"time-line-{name}.svg"))
    return sorted(f for f in os.listdir(folder) if f.endswith(".svg"))


def time_lines(results):
    """Of each rate the largest move there is, and of each way not to converge one."""
    found = {}
    for m in results.of("matrix"):
        if m.moved and m["mode"] == "precopy" and m["rate"] not in ("0", "1000"):
            best = found.get(m["rate"])
            if best is None or m["memory_mib"] > best["memory_mib"]:
                found[m["rate"]] = m
    for m in results.of("late-memory"):
        if m.moved:
            found.setdefault(f"late-memory-{m['mode']}", m)
    for m in results.of("no-convergence"):
        if m.moved:
            found.setdefault(m["options"].split()[-1], m)
    for m in results.of("downtime-at-rate"):
        if m.moved and m["memory_mib"] >= 1024:
            found.setdefault("1GiB-at-10000", m)
    return [(str(name).replace(" ", "-"), m) for name, m in found.items()]

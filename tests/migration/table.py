"""A table of what came of each workload in each mode, in Markdown."""
import os

import cases
import small

SUBJECTS = {"threads": ("threads", "registers", "sections"), "signals": ("signals",), "timers": ("timers", "clocks", "itimer"),
            "calls": ("sleep_restart", "main_waits"), "credentials": ("creds",),
            "memory": ("mm", "memory", "many_vmas", "shared", "novdso", "beyond"), "processes": ("tree", "identity", "attributes"),
            "pipes": ("pipes",), "files": ("files", "many_fds", "locks"), "events": ("events",),
            "sockets": ("unixsock", "tcp", "udp", "peercred"), "programs": tuple(cases.PROGRAMS)}
WORDS = {"PASS": "yes", "FAIL": "**no**", "SKIP": "skipped", "WRONG": "known wrong", "REFUSED": "refused"}
NOT_TRIED = "-"


def subject(name):
    return small.subject(name) if "." in name else next((s for s, names in SUBJECTS.items() if name in names), "other")


def read(path):
    """{(mode, subject, workload): word} of a table that was written before."""
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in f if line.startswith("|")]
    if not rows:
        return {}
    modes = rows[0][2:]
    return {(mode, row[0], row[1]): word for row in rows[2:] for mode, word in zip(modes, row[2:]) if word != NOT_TRIED}


def write(path, verdicts):
    """`verdicts`: {(mode, workload): verdict}. What the file says of other cells stays."""
    cells = read(path) | {(mode, subject(n), n.split(".")[-1]): WORDS[v] for (mode, n), v in verdicts.items()}
    modes = [m for m in cases.MODES if any(mode == m for mode, _, _ in cells)]
    rows = sorted({(s, n) for _, s, n in cells})
    lines = ["| subject | workload | " + " | ".join(modes) + " |", "|---" * (len(modes) + 2) + "|"]
    lines += [f"| {s} | {n} | " + " | ".join(cells.get((m, s, n), NOT_TRIED) for m in modes) + " |" for s, n in rows]
    counts = {w: list(cells.values()).count(w) for w in WORDS.values()}
    with open(path, "w") as f:
        f.write(f"{len(rows)} workloads, {len({s for s, _ in rows})} subjects, {len(modes)} modes; cells: "
                + ", ".join(f"{n} {w}" for w, n in counts.items() if n) + f". `{NOT_TRIED}`: not tried.\n\n" + "\n".join(lines) + "\n")

"""A table of what came of each workload in each mode, in Markdown."""
import cases
import small

SUBJECTS = {"threads": "threads", "registers": "threads", "sections": "threads", "signals": "signals", "timers": "timers", "clocks": "timers",
            "itimer": "timers", "sleep_restart": "calls", "main_waits": "calls", "creds": "credentials", "mm": "memory",
            "memory": "memory", "many_vmas": "memory", "shared": "memory", "novdso": "memory", "beyond": "memory", "tree": "processes",
            "identity": "processes", "attributes": "processes", "pipes": "pipes", "files": "files", "many_fds": "files", "locks": "files",
            "events": "events", "unixsock": "sockets", "tcp": "sockets", "udp": "sockets", "peercred": "sockets",
            **dict.fromkeys(cases.PROGRAMS, "programs")}
WORDS = {"PASS": "yes", "FAIL": "**no**", "SKIP": "skipped", "WRONG": "known wrong", "REFUSED": "refused"}


def subject(name):
    return small.subject(name) if "." in name else SUBJECTS.get(name, "other")


def write(path, verdicts):
    """`verdicts`: {(mode, workload): verdict}"""
    modes = [m for m in cases.MODES if any(mode == m for mode, _ in verdicts)]
    names = sorted({n for _, n in verdicts}, key=lambda n: (subject(n), n))
    lines = ["| subject | workload | " + " | ".join(modes) + " |", "|---" * (len(modes) + 2) + "|"]
    for name in names:
        cells = [WORDS.get(verdicts.get((m, name)), "-") for m in modes]
        lines.append(f"| {subject(name)} | {name.split('.')[-1]} | " + " | ".join(cells) + " |")
    well = sum(v == "PASS" for v in verdicts.values())
    with open(path, "w") as f:
        f.write(f"{len(names)} workloads, {len({subject(n) for n in names})} subjects, {len(modes)} modes: {well} of {len(verdicts)} cells are yes. "
                "`-`: not tried.\n\n" + "\n".join(lines) + "\n")

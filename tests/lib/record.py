"""Writes down what /proc says about a tree; run as an action script of a dump, while the tree is stopped.

    record.py PID FILE"""
import ctypes
import json
import os
import struct
import sys
import time

if __package__:
    from .process import descendants
else:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from lib.process import descendants

TEXTS = ("status", "stat", "limits", "timers", "maps", "smaps", "comm", "personality", "oom_score_adj", "loginuid", "cgroup",
         "cmdline", "coredump_filter", "timens_offsets", "mountinfo")
PAGE, ZEROS = 4096, bytes(4096)
PRESENT, SWAPPED, FILE, GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58


def text(path):
    try:
        with open(path, errors="surrogateescape") as f:
            return f.read()
    except OSError:
        return None


def link(path):
    try:
        return os.readlink(path)
    except OSError:
        return None


def file_facts(path):
    try:
        s = os.stat(path)
        return {"mode": s.st_mode, "size": s.st_size, "inode": s.st_ino, "device": s.st_dev}
    except OSError:
        return None


def pages(pid, maps):
    """{start: [pages written by the task, of these with content]} of private mappings."""
    found = {}
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as f, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.splitlines():
            words = line.split()
            start, end = (int(x, 16) for x in words[0].split("-"))
            if words[1][3] == "s" or line.endswith(("[vsyscall]", "[vvar]", "[vdso]", "[vvar_vclock]")):
                continue
            found[str(start)] = count(f, memory, start, end)
    return found


def count(pagemap, memory, start, end):
    pagemap.seek(start // PAGE * 8)
    written = content = 0
    data = b""
    while len(data) < (end - start) // PAGE * 8 and (more := pagemap.read((end - start) // PAGE * 8 - len(data))):
        data += more
    for i, (value,) in enumerate(struct.iter_unpack("<Q", data)):
        if value & (PRESENT | SWAPPED) and not value & (FILE | GUARD):
            written += 1
            memory.seek(start + i * PAGE)
            try:
                content += memory.read(PAGE) != ZEROS
            except OSError:
                content += 1
    return [written, content]


def auxv(pid):
    with open(f"/proc/{pid}/auxv", "rb") as f:
        data = f.read()
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def task(pid):
    base = f"/proc/{pid}"
    facts = {name: text(f"{base}/{name}") for name in TEXTS}
    facts |= {name: link(f"{base}/{name}") for name in ("exe", "cwd", "root")}
    facts["ns"] = {name: link(f"{base}/ns/{name}") for name in ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")}
    facts["fds"] = {n: {"link": link(f"{base}/fd/{n}"), "info": text(f"{base}/fdinfo/{n}"), "stat": file_facts(f"{base}/fd/{n}")}
                    for n in sorted(os.listdir(f"{base}/fd"), key=int)} if facts["maps"] else {}
    facts["threads"] = {tid: {name: text(f"{base}/task/{tid}/{name}") for name in ("status", "stat", "comm")} |
                        {"affinity": affinity(int(tid))}
                        for tid in sorted(os.listdir(f"{base}/task"), key=int)}
    if facts["maps"]:
        facts["auxv"], facts["pages"] = auxv(pid), pages(pid, facts["maps"])
    return facts


def affinity(tid):
    try:
        return sorted(os.sched_getaffinity(tid))
    except OSError:
        return None


def clock(number):
    class Spec(ctypes.Structure):
        _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
    spec = Spec()
    ctypes.CDLL(None).clock_gettime(number, ctypes.byref(spec))
    return spec.s + spec.ns / 1e9


def record(pid):
    return {"tasks": {str(p): task(p) for p in descendants(pid)}, "monotonic": clock(1), "boottime": clock(7),
            "realtime": time.time()}


def main():
    facts = record(int(sys.argv[1]))
    with open(sys.argv[2], "w") as f:
        json.dump(facts, f)


if __name__ == "__main__":
    main()

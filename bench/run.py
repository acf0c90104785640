#!/usr/bin/env python3
"""Measures what a move costs, as ratios within one run.

    bench/run.py [--build DIR] [--quick] [--out FILE.md]

1. Downtime against memory: live moves between two network namespaces with --mode stop-copy, beside raw TLS over loopback
   with the same cipher in the same run (OpenSSL's own socket I/O, two connections; and our page streams that carry nothing). The bound is 1.3 x (bytes / raw TLS + 50 ms). And the same with pre-copy.
2. Freeze time against threads, mappings and descriptors (dump --leave-running), with the slope of each.

Medians of several rounds. Nothing here passes or fails."""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "migration"))
sys.path.insert(0, os.path.join(HERE, "..", "tests"))

import cases  # noqa: E402
from lib import netns, tool  # noqa: E402
from lib.process import find_moved, kill_tree, wait_for  # noqa: E402

CRIU = {"threads": 630, "mappings": 29, "descriptors": 53}  # microseconds each, CRIU 4.2 on such a machine


def raw_tls(build, mib, mode, rounds=3):
    """Bytes a second of raw TLS over loopback: "openssl" with OpenSSL's own socket I/O, "tls" with our streams."""
    found = []
    for _ in range(rounds):
        out = subprocess.run([os.path.join(build, "bench", "tls_raw"), str(mib), "2", mode], capture_output=True, text=True, check=True,
                             timeout=120)
        result = json.loads(out.stdout)
        found.append(result["bytes"] / result["seconds"])
    return statistics.median(found)


def move(context, mib, folder, streams, mode):
    """One live move of a program with that much memory; gives the last event of send."""
    os.makedirs(folder)
    os.chmod(folder, 0o755)
    short = f"b{os.getpid()}"
    network = netns.Network(short, {"source": "10.77.2.1/24", "destination": "10.77.2.2/24"})
    program = receiver = None
    try:
        t = tool.Tool(context.binary, folder, ["--streams", str(streams), "--mode", mode])
        keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination"])
        cases.WORKLOADS["bench"] = ("memory", [str(mib), "500"])
        program = cases.start(context, "bench", os.path.join(folder, "program"), [*network.enter("source"), *netns.OTHER_CLOCKS],
                              f"{short}-source")
        program.ready()
        program.remember()
        receiver = t.receive(network, "destination", keys)
        comm = program.comm()
        code, seen, out = t.send(network, "source", "destination", keys, program.pid)
        if code != 0:
            raise tool.Failed(out)
        program.reap_old(receiver.pid)
        pid = wait_for(lambda: find_moved(program.inner, comm), "the tree at the destination", 10)
        program.moved_to(pid, f"{short}-destination")
        return [e for e in seen if e["event"] == "done"][-1]
    finally:
        if program is not None:
            program.end()
        if receiver is not None and receiver.poll() is None:
            kill_tree(receiver.pid)
        network.close()


def downtime(context, build, sizes, rounds, top):
    rows = ["| memory | downtime | of it freeze | of it pages | sent | raw TLS | bytes / raw TLS + 50 ms | ratio (bound 1.3) | "
            "our streams alone | ratio to that | with pre-copy |", "| --- " * 11 + "|"]
    for mib in sizes:
        speed, own = (raw_tls(build, max(mib, 256), mode) for mode in ("openssl", "tls"))
        done = [move(context, mib, os.path.join(top, f"{mib}-{n}"), 2, "stop-copy") for n in range(rounds)]
        warm = [move(context, mib, os.path.join(top, f"{mib}-p{n}"), 2, "precopy") for n in range(rounds)]
        short = statistics.median(e["downtime_ms"] for e in warm)
        freeze = statistics.median(e["freeze_ms"] for e in done)
        ms = statistics.median(e["downtime_ms"] for e in done)
        pages = statistics.median(e["pages_ms"] for e in done)
        sent = statistics.median(e["bytes"] for e in done)
        base, own_base = (sent / s * 1000 + 50 for s in (speed, own))
        rows.append(f"| {mib} MiB | {ms:.0f} ms | {freeze:.0f} ms | {pages:.0f} ms | {sent / 2**20:.0f} MiB | {speed / 2**30:.2f} GiB/s | "
                    f"{base:.0f} ms | {ms / base:.2f} | {own / 2**30:.2f} GiB/s | {ms / own_base:.2f} | {short:.0f} ms |")
        print(rows[-1], flush=True)
    return rows


def frozen_us(context, name, arguments, rounds, top):
    """Median (stop, frozen) times of dumps that leave the program running."""
    folder = os.path.join(top, f"freeze-{name}-{'-'.join(arguments)}")
    os.makedirs(folder)
    os.chmod(folder, 0o755)
    cases.WORKLOADS["bench"] = (name, arguments)
    t = tool.Tool(context.binary, folder)
    program = cases.start(context, "bench", os.path.join(folder, "program"))
    try:
        program.ready()
        found = []
        for n in range(rounds):
            out = t.dump(program.pid, os.path.join(folder, f"images-{n}"), "-R", "--display-stats")
            found.append((int(re.search(r"Freezing time: (\d+)", out)[1]), int(re.search(r"Frozen time: (\d+)", out)[1])))
        return tuple(statistics.median(x) for x in zip(*found))
    finally:
        program.end()


def slopes(context, rounds, top):
    rows = ["| what | count | stop | frozen | slope of frozen | CRIU 4.2 on such a machine |", "| --- | --- | --- | --- | --- | --- |"]
    for what, name, counts in (("threads", "threads", (1, 64, 512)), ("mappings", "many_vmas", (20, 5000)),
                               ("descriptors", "many_fds", (10, 5000))):
        first = None
        for count in counts:
            stop, frozen = frozen_us(context, name, [str(count)], rounds, top)
            slope = "" if first is None else f"{(frozen - first[1]) / (count - first[0]):.1f} us each"
            first = first or (count, frozen)
            rows.append(f"| {what} | {count} | {stop / 1000:.1f} ms | {frozen / 1000:.1f} ms | {slope} | "
                        f"{CRIU[what] if slope else ''}{' us each' if slope else ''} |")
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(HERE, "..", "build", "release"))
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--out", help="also write the tables there")
    parser.add_argument("--only", choices=("downtime", "freeze"))
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    context = cases.Context(os.path.join(build, "migrate", "migrate"), os.path.join(build, "tests", "workloads"), None)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mbench-", dir="/dev/shm") as top:
        os.chmod(top, 0o755)
        if options.only != "freeze":
            rows += downtime(context, build, (64, 256) if options.quick else (64, 256, 1024), 3 if options.quick else 5, top) + [""]
        if options.only != "downtime":
            rows += slopes(context, 3 if options.quick else 7, top)
    if options.out:
        with open(options.out, "w") as f:
            f.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    from lib.process import become_subreaper
    become_subreaper()
    main()

"""How long a tree is frozen, against what it consists of: dumps that leave it running, with the slope of each."""
import os
import re
import statistics

import cases
from lib import tool
from lib.suite import Skip

# What is counted: (name, workload of tests/workloads, counts).
KINDS = (("threads", "threads", (1, 64, 512)), ("mappings", "many_vmas", (20, 1000, 5000)), ("descriptors", "many_fds", (10, 1000, 5000)),
         ("MiB of memory", "memory", (16, 256, 1024)))
CRIU = {"threads": 630, "mappings": 29, "descriptors": 53}  # microseconds each, CRIU 4.2 on such a machine (measured once)


def times_us(hosts, name, arguments, repeat):
    """Median (until all tasks stand, frozen in all) of dumps that leave the program running. Pages are dumped, but after it
    was described: `frozen` holds what grows with the count."""
    folder = hosts.new_folder(f"freeze-{name}-{'-'.join(arguments)}")
    context = cases.Context(hosts.binary, os.path.join(hosts.build, "tests", "workloads"), None)
    cases.WORKLOADS["bench"] = (name, arguments)
    program = cases.start(context, "bench", os.path.join(folder, "program"))
    t = tool.Tool(hosts.binary, folder)
    try:
        program.ready()
        found = []
        for n in range(repeat):
            images = os.path.join(folder, f"images-{n}")
            out = t.dump(program.pid, images, "-R", "--display-stats")
            found.append((int(re.search(r"Freezing time: (\d+)", out)[1]), int(re.search(r"Frozen time: (\d+)", out)[1])))
            for file in os.listdir(images):
                os.unlink(os.path.join(images, file))
        return tuple(statistics.median(x) for x in zip(*found))
    finally:
        program.end()


def rows(hosts, repeat):
    out = ["| what | count | until all stand | frozen | slope of frozen | CRIU 4.2 on such a machine |", "| --- " * 6 + "|"]
    for what, name, counts in KINDS:
        first = None
        for count in counts:
            try:
                stop, frozen = times_us(hosts, name, [str(count)], repeat)
            except Skip as e:
                out.append(f"| {what} | {count} | not measured: {e} | | | |")
                continue
            slope = "" if first is None else f"{(frozen - first[1]) / (count - first[0]):.1f} us each"
            first = first or (count, frozen)
            peer = f"{CRIU[what]} us each" if slope and what in CRIU else ""
            out.append(f"| {what} | {count} | {stop / 1000:.1f} ms | {frozen / 1000:.1f} ms | {slope} | {peer} |")
            print(out[-1], flush=True)
    return out

#!/usr/bin/env python3
"""Measures what a move costs. Needs root and a build (scripts/build release); makes two network namespaces that stand for
hosts, and removes them. Nothing here passes or fails a test; every figure is worth something only beside those of the same run.

    bench/run.py [--quick] [--only SUBJECT]... [--repeat N] [--out DIR] [--markdown FILE] [--build DIR]

Subjects:
  matrix             memory x pages written a second x mode; the estimates, and plots of all that
  estimates          the matrix with pre-copy only, and what becomes of a program that writes 2 GB/s
  convergence        only the latter: each --on-no-convergence choice
  downtime-at-rate   1 GiB and 64 MiB at 10,000 random pages/s in turns (20 moves each), against each other and raw TLS
  late-memory        post-copy, hybrid and auto: the switch, how soon it is whole, how long the program stood still for pages (10 each)
  freeze             how long a dump freezes a tree, against threads, mappings, descriptors and memory
  page-files         image files: many operations in flight against plain calls, in memory and on disk, cached and not
  timers             how late a thousand timers in 200 processes are because of a move (3 of two modes)
  peer               CRIU beside it, where one is installed that starts
Without --only: matrix, convergence, freeze and peer.

DIR gets moves.csv (a row a move; units in measure/moves.py), the senders' events, tables.md, the plots (SVG), and with --reports
the page that `migrate send --report` writes of each move. FILE gets the tables too. The exit code is 1 if a moved program found
its memory changed, or if something could not be measured."""
import argparse
import os
import platform
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from measure import baseline, convergence, downtime_at_rate, estimates, freeze, late_memory, matrix, page_files, peer, plots, table, timers  # noqa: E402
from measure.hosts import LIKE_LOOPBACK, Hosts  # noqa: E402
from lib.process import become_subreaper  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
SUBJECTS = ("matrix", "estimates", "convergence", "downtime-at-rate", "late-memory", "freeze", "page-files", "timers", "peer")
DEFAULT = ("matrix", "convergence", "freeze", "peer")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(HERE, "..", "build", "release"))
    parser.add_argument("--migrate", help="the program to measure (default: that of --build)")
    parser.add_argument("--quick", action="store_true", help="a small matrix, once: within two minutes on two cores")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="may be given several times")
    parser.add_argument("--repeat", type=int, help="moves a cell (default: 3; 20 for downtime-at-rate; with --quick 1 and 2)")
    parser.add_argument("--sizes", type=lambda text: tuple(int(s) for s in text.split(",")), help="MiB, for the matrix (64,256,1024,4096) and, the first one, for page-files")
    parser.add_argument("--before", help="for page-files: a program of an earlier state, measured in turns with this one")
    parser.add_argument("--disk", default="/var/tmp", help="for page-files: a folder on a disk (default: /var/tmp)")
    parser.add_argument("--mtu", type=int, default=LIKE_LOOPBACK, help="of the cable between the hosts (default: like loopback's)")
    parser.add_argument("--reports", action="store_true", help="with --out: the report of each move as well")
    parser.add_argument("--peer", default="criu", help="name or path of the peer (default: criu)")
    parser.add_argument("--out", help="folder for the CSV file, the tables and the plots")
    parser.add_argument("--markdown", help="write the tables to this file as well")
    return parser.parse_args()


def about(build, mtu):
    """What every table of a run belongs to."""
    raw = baseline.raw_tls(build, rounds=3)
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) / 2**20
    return [f"Measured {time.strftime('%Y-%m-%d')}: Linux {platform.release()}, {os.cpu_count()} processors for source, destination and "
            f"program together, {memory:.0f} GiB; MTU {mtu}; raw TLS 1.3 (AES-128-GCM, 2 streams over loopback) {raw / 2**30:.2f} GiB/s; load average at "
            f"the beginning {os.getloadavg()[0]:.1f}."]


class Run:
    def __init__(self, options, hosts, results):
        self.options, self.hosts, self.results = options, hosts, results
        self.sections = []
        self.broken = []  # subjects that could not be measured

    def repeat(self, usual, quick):
        return self.options.repeat or (quick if self.options.quick else usual)

    def section(self, title, rows):
        self.sections += [f"## {title}", "", *rows, ""]

    def matrix(self, modes=None):
        quick = self.options.quick
        modes = modes or (matrix.QUICK_MODES if quick else matrix.MODES)
        sizes = self.options.sizes or (matrix.QUICK_SIZES if quick else matrix.SIZES)
        matrix.run(self.hosts, self.results, sizes, matrix.QUICK_RATES if quick else matrix.RATES, modes, self.repeat(3, 1))
        found = self.results.of("matrix")
        self.section("Scenarios", table.matrix(found))
        if "stop-copy" in modes:
            self.section("Stop-copy against raw TLS", table.stopped_bound(found))
        late = [m for m in found if m["mode"] in ("postcopy", "hybrid")]
        if late:
            self.section("Memory that comes when the program runs", late_memory.rows(late))
        self.section("Estimates", estimates.rows(found))

    def convergence(self):
        convergence.run(self.hosts, self.results, self.repeat(3, 1))
        self.section("A program that writes 2 GB/s, from the first page to the last and again",
                     convergence.rows(self.results.of(convergence.SCENARIO)))

    def estimates(self):
        self.matrix(("precopy",))
        self.convergence()

    def downtime_at_rate(self):
        downtime_at_rate.run(self.hosts, self.results, self.repeat(20, 2))
        self.section("Downtime at 10,000 random pages a second", downtime_at_rate.rows(self.results.of(downtime_at_rate.SCENARIO)))

    def late_memory(self):
        late_memory.run(self.hosts, self.results, self.repeat(10, 1), *(self.options.sizes or ())[:1])
        self.section("Memory that comes when the program runs", late_memory.rows(self.results.of(late_memory.SCENARIO)))

    def freeze(self):
        self.section("Freeze", freeze.rows(self.hosts, self.repeat(7, 3)))

    def page_files(self):
        mib = self.options.sizes[0] if self.options.sizes else 128 if self.options.quick else 512
        self.section("Image files", page_files.rows(self.hosts, self.options.before and os.path.abspath(self.options.before),
                                                    self.options.disk, mib, self.repeat(9, 3)))

    def timers(self):
        self.section("Timers", timers.rows(self.hosts, self.repeat(3, 1)))

    def peer(self):
        self.section("Beside CRIU", peer.rows(self.hosts, self.results, self.options.peer, repeat=self.repeat(3, 1)))


def measure(options, results):
    build = os.path.abspath(options.build)
    reports = os.path.join(options.out, "reports") if options.out and options.reports else None
    with Hosts(build, options.migrate and os.path.abspath(options.migrate), reports, options.mtu) as hosts:
        run = Run(options, hosts, results)
        run.sections += [*about(build, options.mtu), ""]
        matrix.warm_up(hosts)
        for subject in options.only or DEFAULT:
            try:
                getattr(run, subject.replace("-", "_"))()
            except Exception as e:  # what was measured is told all the same
                run.broken.append(f"{subject}: {type(e).__name__}: {e}")
    return run


def write_tables(path, text):
    """A file that has the markers keeps what is around them, and its titles are one level above those of the tables."""
    begin, end = "<!-- results: begin (bench/run.py --markdown) -->\n", "<!-- results: end -->\n"
    try:
        with open(path) as f:
            old = f.read()
    except FileNotFoundError:
        old = ""
    if begin in old and end in old:
        text = old[:old.index(begin)] + begin + text.replace("\n## ", "\n### ") + old[old.index(end):]
    with open(path, "w") as f:
        f.write(text)


def main():
    options = parse()
    if os.geteuid() != 0:
        sys.exit("bench/run.py: needs root, for namespaces and for moving processes")
    if options.out:
        os.makedirs(options.out, exist_ok=True)
    results = matrix.Results(options.out)
    try:
        run = measure(options, results)
    finally:
        results.close()
    text = "\n".join(run.sections) + "\n"
    print("\n" + text)
    for path in filter(None, (options.markdown, options.out and os.path.join(options.out, "tables.md"))):
        write_tables(path, text)
    if options.out:
        print("plots: " + ", ".join(plots.draw_all(results, options.out)))
    changed = [m for m in results.moves if m["memory_equal"] == 0]
    lost = [m for m in results.moves if m["outcome"] == "not measured"]
    if lost:
        run.broken.append(f"{len(lost)} of {len(results.moves)} moves could not be measured, the first: {lost[0]['reason']}")
    if changed:
        run.broken.append(f"{len(changed)} of {len(results.moves)} programs found their memory changed")
    if run.broken:
        sys.exit("\n".join(f"bench/run.py: {what}" for what in run.broken))


if __name__ == "__main__":
    become_subreaper()
    main()

"""CRIU beside it in the same run, where one is installed that starts: the same program, the same machine, and the downtime as
the program itself saw it. What it cannot do here is told in its own words; no number stands for it."""
import os
import shutil
import subprocess

from lib.process import innermost_pid, kill_tree, read, wait_for

from . import table
from .workload import Task, Writer, longest_gap

SIZES, RATE = (16, 64, 256, 1024), 10_000
PORT = 7411


class Failed(Exception):
    """The peer did not do it; the text is its own."""


def words(text, log=""):
    """The peer's first complaint."""
    lines = [line.strip() for line in (read(log) + "\n" + text).splitlines()]
    wrong = [line for line in lines if "rror" in line and "exited, status" not in line] or [line for line in lines if line]
    return wrong[0] if wrong else "it said nothing"


class Peer:
    def __init__(self, program="criu"):
        self.program = shutil.which(program)
        self.version = ""

    def run(self, *arguments, log="", timeout=120):
        try:
            done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                                  stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise Failed(f"{arguments[0]} did not end within {timeout} s") from None
        if done.returncode != 0:
            raise Failed(words(done.stdout + done.stderr, log))
        return done.stdout

    def why_not(self):
        """Empty if it starts; else why it does not."""
        if self.program is None:
            return "none is installed"
        try:
            self.version = next(iter(self.run("--version").splitlines()), "").removeprefix("Version: ")
            self.run("check")
            return ""
        except (Failed, OSError) as e:
            return str(e)

    def through_files(self, images, program):
        """Dumped to `images` (in memory), then restored from there. Gives the restored pid."""
        self.run("dump", "-t", program.pid, "-D", images, "-o", "dump.log", "-v1", log=f"{images}/dump.log")
        return self.restore(images, program)

    def restore(self, images, program):
        program.reap_old()  # its pid is free then
        pidfile = os.path.join(images, "pidfile")
        self.run("restore", "-D", images, "-d", "-o", "restore.log", "-v1", "--pidfile", pidfile, log=f"{images}/restore.log")
        return int(read(pidfile))

    def precopied(self, images, program):
        """A round while it runs, then the rest, both through a page server; then restored."""
        first, last = os.path.join(images, "1"), os.path.join(images, "2")
        for folder in (first, last):
            os.makedirs(folder)
        with self.page_server(first):
            self.run("pre-dump", "-t", program.pid, "-D", first, "--track-mem", "-o", "dump.log", "-v1", "--page-server", "--address", "127.0.0.1",
                     "--port", PORT, log=f"{first}/dump.log")
        with self.page_server(last):
            self.run("dump", "-t", program.pid, "-D", last, "--track-mem", "--prev-images-dir", "../1", "-o", "dump.log", "-v1", "--page-server",
                     "--address", "127.0.0.1", "--port", PORT, log=f"{last}/dump.log")
        return self.restore(last, program)

    def page_server(self, folder):
        return PageServer(self.program, folder)


class PageServer:
    """For one dump; it ends by itself."""

    def __init__(self, program, folder):
        parent = ["--prev-images-dir", "../1"] if os.path.basename(folder) != "1" else []
        self.log = os.path.join(folder, "page-server.log")
        self.process = subprocess.Popen([program, "page-server", "-D", folder, "--address", "127.0.0.1", "--port", str(PORT), "-o", self.log,
                                         *parent], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        needle = f":{PORT:04X} "
        wait_for(lambda: self.process.poll() is not None or
                 any(needle in line and " 0A " in line for line in read("/proc/net/tcp").splitlines()[1:]), "the page server", 20)
        if self.process.poll() is not None:
            raise Failed(words("", self.log))
        return self

    def __exit__(self, *_):
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            kill_tree(self.process.pid)
            self.process.wait()


def gap_of(hosts, peer, mib, way):
    """Milliseconds for which the program did nothing; Failed if the peer did not do it."""
    folder = hosts.new_folder("peer")
    images = os.path.join(folder, "images")
    os.makedirs(images)
    program = Writer(hosts.build, Task(mib, RATE), os.path.join(folder, "program"))
    try:
        program.ready()
        program.run_on(0.5)
        program.remember()
        began = program.samples()[-1].now
        pid = getattr(peer, way)(images, program)
        wait_for(lambda: innermost_pid(pid) is not None, "the restored program", 10)
        program.moved_to(pid, None)
        program.run_on(0.5)
        program.check()
        return longest_gap(program.samples(), began, float("inf")) * 1000
    finally:
        program.end()
        shutil.rmtree(images, ignore_errors=True)


WAYS = (("through_files", "dump to memory, then restore"), ("precopied", "pre-dump and dump to a page server, then restore"))


def rows(hosts, results, program="criu", sizes=SIZES, repeat=3):
    """A Markdown table, or the sentence that says why there is none. `results`: our own moves at the same rate, if any."""
    peer = Peer(program)
    why = peer.why_not()
    if why:
        return [f"No peer to compare with: {program} {peer.version}".rstrip() + f" does not start here. It says: `{why}`"]
    ours = [m for m in results.moves if m.moved and m["mode"] == "precopy" and m["rate"] == str(RATE)]
    out = [f"{program} {peer.version}, the same program ({RATE:,} random pages/s) on the same machine, downtime as the program saw it:", "",
           "| memory | " + " | ".join(f"{program}: {name}" for _, name in WAYS) + " | a live move of ours, between hosts |", "| --- " * 4 + "|"]
    for mib in sizes:
        cells = []
        for way, _ in WAYS:
            try:
                found = sorted(gap_of(hosts, peer, mib, way) for _ in range(repeat))
                cells.append(table.ms(found[len(found) // 2]))
            except Failed as e:
                cells.append(f"it says: `{e}`")
        cells.append(table.ms(table.median([m for m in ours if m["memory_mib"] == mib], "seen_ms")))
        out.append(f"| {mib} MiB | " + " | ".join(cells) + " |")
        print(out[-1], flush=True)
    return out

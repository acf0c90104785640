"""Image files: many operations in flight (io_uring) against plain calls, in turns. Dumps that leave the program running (the
time its pages take), dumps to a page server, and whole restores from files that are cached and from files that are not."""
import contextlib
import os
import re
import shutil
import statistics
import tempfile
import time

from lib import programs, tool
from lib.process import kill_tree, read, reap, spawn, wait_for

PORT = 7413
HOLD = """
import mmap, os, sys, time
flags = mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if sys.argv[1] == "shared" else mmap.MAP_PRIVATE)
memory = mmap.mmap(-1, int(sys.argv[2]) << 20, flags=flags)
for at in range(0, len(memory), 1 << 20):
    memory[at:at + (1 << 20)] = os.urandom(1 << 20)
open("ready", "w").close()
time.sleep(1000000)
"""


class Holder(programs.Program):
    """Has memory, and sleeps."""

    def __init__(self, folder, kind, mib):
        self.kind, self.mib = kind, mib
        super().__init__(folder)

    def command(self):
        return ["/usr/bin/python3", "-c", HOLD, self.kind, str(self.mib)]

    def ready(self):
        wait_for(lambda: os.path.exists(os.path.join(self.folder, "ready")), "memory to be filled", 60)


class Ways:
    """The program with plain calls only, as it is, and, if there is one, a program of another state."""

    def __init__(self, binary, before):
        self.all = {"calls": (binary, {"MIGRATE_IO": "calls"}), "ring": (binary, {"MIGRATE_IO": ""})}
        if before:
            self.all = {"before": (before, {}), **self.all}

    def __iter__(self):
        return iter(self.all)

    @contextlib.contextmanager
    def use(self, way):
        """Gives the program; what is started meanwhile goes that way."""
        binary, environment = self.all[way]
        old = dict(os.environ)
        os.environ.update(environment)
        try:
            yield binary
        finally:
            os.environ.clear()
            os.environ.update(old)


def drop_from_cache(folder):
    for name in os.listdir(folder):
        fd = os.open(os.path.join(folder, name), os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def read_into_cache(folder):
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as f:
            while f.read(1 << 20):
                pass


def empty(folder):
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


class Measurement:
    """One program, on one file system. Times in milliseconds."""

    def __init__(self, program, ways, folder):
        self.program, self.ways, self.folder = program, ways, folder
        self.found = {}  # {(what, way): times}

    def note(self, what, way, seconds):
        self.found.setdefault((what, way), []).append(seconds * 1000)

    def dump(self, way, *options):
        """Gives the seconds that its pages took."""
        with self.ways.use(way) as binary:
            images = os.path.join(self.folder, "images")
            out = tool.Tool(binary, self.folder).dump(self.program.pid, images, "--display-stats", *options)
            return int(re.search(r"Memory write time: (\d+)", out)[1]) / 1e6

    def dumps(self):
        for way in self.ways:
            self.note("dump", way, self.dump(way, "-R"))
            empty(os.path.join(self.folder, "images"))

    def page_server(self):
        for way in self.ways:
            pages = os.path.join(self.folder, "pages")
            os.makedirs(pages, exist_ok=True)
            with self.ways.use(way) as binary:
                server = spawn([binary, "page-server", "-D", pages, "--address", "127.0.0.1", "--port", str(PORT)],
                               log=os.path.join(self.folder, "server.log"))
                try:
                    wait_for(lambda: f":{PORT:04X} 00000000:0000 0A" in read("/proc/net/tcp"), "the page server to listen")
                    self.note("dump to a page server", way,
                              self.dump(way, "-R", "--page-server", "--address", "127.0.0.1", "--port", str(PORT)))
                    server.wait(timeout=60)
                finally:
                    kill_tree(server.pid)
            empty(pages)
            empty(os.path.join(self.folder, "images"))

    def restores(self, repeat, cold):
        """The program is not the one that was started any more."""
        images = os.path.join(self.folder, "images")
        self.dump("calls")
        self.program.reap_old()
        for _ in range(repeat):
            for what, prepare in (("restore, not cached", drop_from_cache), ("restore, cached", read_into_cache)):
                if what == "restore, not cached" and not cold:
                    continue
                for way in self.ways:
                    prepare(images)
                    with self.ways.use(way) as binary:
                        start = time.monotonic()
                        pid = tool.Tool(binary, self.folder).restore(images)
                        self.note(what, way, time.monotonic() - start)
                    kill_tree(pid)
                    wait_for(lambda p=pid: reap([p]) or not os.path.exists(f"/proc/{p}"), "the restored program's end")


def measure(hosts, before, disk, mib, repeat):
    """{(program, file system): {(what, way): times}}"""
    ways = Ways(hosts.binary, before)
    found = {}
    for kind in ("private", "shared"):
        for system, parent in (("in memory", "/dev/shm"), ("on disk", disk)):
            folder = tempfile.mkdtemp(prefix="mbench-pages-", dir=parent)
            program = Holder(os.path.join(folder, "program"), kind, mib)
            try:
                program.ready()
                m = Measurement(program, ways, folder)
                for _ in range(repeat):
                    m.dumps()
                    if kind == "private":
                        m.page_server()
                m.restores(repeat, system == "on disk")
                found[f"{kind} memory", system] = m.found
            finally:
                program.end()
                shutil.rmtree(folder, ignore_errors=True)
    return list(ways), found


def rows(hosts, before, disk, mib, repeat):
    ways, found = measure(hosts, before, disk, mib, repeat)
    base = ways[0]
    out = [f"| {mib} MiB of | image files | what | " + " | ".join(f"{w}: median, least" for w in ways) + " | " +
           " | ".join(f"{base} / {w}: median, least" for w in ways[1:]) + " |", "| --- " * (2 + 2 * len(ways)) + "|"]
    for (title, system), times in found.items():
        for what in dict.fromkeys(what for what, _ in times):
            middle = {w: statistics.median(times[what, w]) for w in ways}
            least = {w: min(times[what, w]) for w in ways}
            out.append(f"| {title} | {system} | {what} | " + " | ".join(f"{middle[w]:.0f} ms, {least[w]:.0f} ms" for w in ways) + " | " +
                       " | ".join(f"{middle[base] / middle[w]:.2f}, {least[base] / least[w]:.2f}" for w in ways[1:]) + " |")
            print(out[-1], flush=True)
    return out

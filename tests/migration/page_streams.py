#!/usr/bin/env python3
"""Compression, bandwidth limit and live line of real moves between two network namespaces.

    page_streams.py [--build DIR] [--only REGEX] [--list]
"""
import os
import re
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib import netns, suite, terminal, tool  # noqa: E402
from lib.process import descendants, find_moved, kill_all, read, run, spawn, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402

MIB = 1 << 20
# Holds text or noise, writes noise of its own all the time, tells a checksum of the rest on request.
PROGRAM = r"""
import hashlib, os, signal, sys, time
folder, kind, size, busy = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if kind == "text":
    line = b"session:%d user=user%d cart=[%d,%d] state=pending\n"
    kept = bytearray().join(line % (i, i * 7919 % 10**6, i * 31 % 997, i * 17 % 499) for i in range(size // 44))
else:
    kept = bytearray(os.urandom(size))
def tell():
    with open(folder + "/sum.new", "w") as f:
        f.write(hashlib.sha256(kept).hexdigest())
    os.rename(folder + "/sum.new", folder + "/sum")
asked = False
def ask(*_):
    global asked
    asked = True
signal.signal(signal.SIGUSR1, ask)
tell()
written = bytearray(os.urandom(busy))
n = 0
while True:
    n += 1
    for at in range(0, len(written), 4096):
        written[at] = n & 255
    if asked:
        asked = False
        tell()
    time.sleep(0.01)
"""


class Hosts:
    """Two hosts, and a program to be moved from one to the other."""

    def __init__(self, context, folder, kind="text", size=64 * MIB, busy=1 * MIB):
        self.folder, self.receiver, self.moved = folder, None, None
        self.tool = tool.Tool(context.binary, folder)
        self.keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination"])
        self.network = netns.Network(f"p{os.getpid()}", {"source": "10.77.4.1/24", "destination": "10.77.4.2/24"})
        self.where = os.path.join(folder, "program")
        os.makedirs(self.where)
        script = os.path.join(self.where, "hold.py")
        with open(script, "w") as f:
            f.write(PROGRAM)
        self.program = spawn(["/usr/bin/python3", script, self.where, kind, size, busy], log=os.path.join(self.where, "output"),
                             prefix=self.network.enter("source"))

    def __enter__(self):
        try:
            self.sum = wait_for(lambda: read(os.path.join(self.where, "sum")), "the program to be ready", 60)
        except Exception:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.moved is None:
            self.moved = find_moved(self.program.pid, "python3", self.where)
        for pid in filter(None, (self.moved, self.receiver and self.receiver.pid, self.program.pid)):
            kill_all(descendants(pid))
        for process in filter(None, (self.receiver, self.program)):
            process.wait(timeout=5)
        self.network.close()

    def receive(self, *options):
        self.receiver = self.tool.receive(self.network, "destination", self.keys, options=["--json", *options])

    def send(self, *options):
        """Gives the sender's events; the receiver's are in self.there."""
        code, events, out = self.tool.send(self.network, "source", "destination", self.keys, self.program.pid, options=options)
        self.there = tool.events(read(os.path.join(self.folder, "receive.log")))
        expect(code == 0, f"send exited {code}: {out.strip()[-800:]}")
        return events

    def expect_same(self):
        """The moved program holds what it held."""
        os.unlink(os.path.join(self.where, "sum"))
        self.moved = wait_for(lambda: find_moved(self.program.pid, "python3", self.where), "the program at the destination", 10)
        os.kill(self.moved, signal.SIGUSR1)
        found = wait_for(lambda: read(os.path.join(self.where, "sum")), "the moved program to tell its checksum", 30)
        expect(found == self.sum, "the moved program's memory differs")


def of(events, name):
    return [e for e in events if e["event"] == name]


def bytes_of(events):
    pages = of(events, "round") + of(events, "pages")
    return sum(e["bytes"] for e in pages), sum(e["wire_bytes"] for e in pages)


def compressed(compress, mode, most, kind="text", receive=(), codec=None):
    """`most`: wire bytes a byte of pages."""
    def case(context, folder):
        with Hosts(context, folder, kind) as hosts:
            hosts.receive(*receive)
            events = hosts.send(f"--compress={compress}", f"--mode={mode}")
            hosts.expect_same()
            raw, wire = bytes_of(events)
            expect(raw > 64 * MIB and wire <= raw * most, f"{wire} bytes on the wire for {raw} bytes of pages")
            expect(of(events, "done")[0]["wire_bytes"] == wire, "the sums of wire_bytes differ")
            there = of(hosts.there, "pages")[0]
            expect(there["wire_bytes"] == of(events, "pages")[0]["wire_bytes"], "the receiver counted other bytes")
            if codec:
                expect(of(events, "codec")[0]["codec"] == codec, f"codec: {of(events, 'codec')}")
            if codec == "raw":
                expect("takes no pages that are packed so" in of(events, "codec")[0]["why"], "no word of why")
                expect(wire >= raw, "compressed all the same")
    return case


def limited(rate, bytes_a_second, mode):
    def case(context, folder):
        with Hosts(context, folder, size=24 * MIB, busy=4 * MIB) as hosts:
            hosts.receive()
            events = hosts.send(f"--bandwidth-limit={rate}", f"--mode={mode}", "--max-downtime=1", "--max-rounds=3")
            hosts.expect_same()
            rounds = of(events, "round")
            for r in rounds:
                expect(r["wire_bytes"] <= bytes_a_second * (r["ms"] / 1000 + 0.011), f"over the limit: {r}")
            pages, done = of(events, "pages")[0], of(events, "done")[0]
            if mode == "stop-copy":
                least = pages["wire_bytes"] / bytes_a_second - 0.011
                expect(done["pages_ms"] / 1000 >= least, f"stopped pages took {done['pages_ms']} ms, not {least} s")
                return
            expect(rounds, "no round")
            # The stopped phase is not limited, and is estimated so.
            last = of(events, "decide")[-1]
            expect(last["stopped_bandwidth"] > 2 * last["bandwidth"], f"estimated with the rounds' bandwidth: {last}")
    return case


def on_a_terminal(columns, then=None):
    """One live line, not longer than the terminal is wide; none is left at the end."""
    def case(context, folder):
        with Hosts(context, folder, size=24 * MIB, busy=8 * MIB) as hosts:
            hosts.receive()
            screen = terminal.Terminal(columns)
            try:
                command = [*hosts.network.enter("source"), f"--time=/proc/{hosts.program.pid}/ns/time", context.binary, "send",
                           f"{hosts.network.address('destination')}:7400", f"pid:{hosts.program.pid}", *hosts.keys.options("source"),
                           "--tls-name", "destination", "--state-dir", os.path.join(folder, "state-source"), "--parent-may-notice",
                           "--bandwidth-limit=20M", "--compress=lz4", "--max-downtime=1", "--max-rounds=3"]
                sender = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=screen.slave, stderr=screen.slave,
                                          env={**os.environ, "TERM": "xterm", **hosts.tool.environment("source")}, start_new_session=True)
                screen.release()
                end, resized_at = time.monotonic() + 60, None
                while screen.read():
                    expect(time.monotonic() < end, "send did not end")
                    if then and resized_at is None and len(terminal.live_lines(screen.written)) >= 3:
                        resized_at = len(screen.written)
                        screen.resize(then)
                expect(sender.wait(timeout=20) == 0, f"send exited {sender.returncode}: {screen.written[-600:]}")
            finally:
                screen.close()
            text = screen.written
            live = terminal.live_lines(text)
            expect(len(live) >= 3, f"{len(live)} live lines: {text[-600:]}")
            for line in live:
                expect(len(line) < columns, f"{len(line)} characters on {columns} columns: {line!r}")
            if then:
                # What was drawn while the size changed may be as wide as before.
                for line in terminal.live_lines(text[resized_at:])[2:]:
                    expect(len(line) < then, f"{len(line)} characters on {then} columns: {line!r}")
            kept = terminal.lines(text)
            expect(not any(re.search(r"^send: (round \d+|pages) [\d.]+ .iB of|MiB of", line) for line in kept),
                   f"a live line was left: {kept}")
            expect(kept[-1] == "" and any("moved" in line for line in kept), f"the end: {kept[-3:]}")
            if columns >= 100 and not then:
                expect(any("/s, " in line and "on the wire" in line for line in live), f"no rate and ratio: {live}")
                expect(any("pages/s written, downtime ~" in line for line in live), f"no dirty rate and estimate: {live[-3:]}")
    return case


def not_on_a_terminal(context, folder):
    with Hosts(context, folder, size=16 * MIB) as hosts:
        hosts.receive()
        code, out = run([context.binary, "send", f"{hosts.network.address('destination')}:7400", f"pid:{hosts.program.pid}",
                         *hosts.keys.options("source"), "--tls-name", "destination", "--state-dir", os.path.join(folder, "state-source"),
                         "--parent-may-notice", "--bandwidth-limit=8M"], timeout=60, env=hosts.tool.environment("source"),
                        prefix=[*hosts.network.enter("source"), f"--time=/proc/{hosts.program.pid}/ns/time"])
        expect(code == 0, f"send exited {code}: {out[-600:]}")
        expect("\r" not in out and "\x1b" not in out and " MiB of " not in out, f"a live line: {out}")


CASES = {
    "compress/zstd": compressed("zstd", "precopy", 0.5, codec="zstd:1"),
    "compress/zstd-level": compressed("zstd:5", "stop-copy", 0.5, codec="zstd:5"),
    "compress/lz4": compressed("lz4", "precopy", 0.7, codec="lz4"),
    "compress/lz4-stop-copy": compressed("lz4", "stop-copy", 0.7, codec="lz4"),
    "compress/noise": compressed("zstd", "precopy", 1.02, kind="noise"),
    "compress/auto": compressed("auto", "precopy", 1.02),
    "compress/auto-noise": compressed("auto", "stop-copy", 1.02, kind="noise"),
    "compress/unwilling-peer": compressed("zstd", "precopy", 1.02, receive=("--no-compress",), codec="raw"),
    "limit/rounds": limited("20M", 20e6, "precopy"),
    "limit/stop-copy": limited("20M", 20e6, "stop-copy"),
    "live-line/wide": on_a_terminal(160),
    "live-line/narrow": on_a_terminal(30),
    "live-line/tiny": on_a_terminal(12),
    "live-line/resized": on_a_terminal(120, then=24),
    "live-line/none": not_on_a_terminal,
}

if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mpages-"))

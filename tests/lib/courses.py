"""What a marathon moves: programs under load, each with a proof that nothing was lost on the way."""
import http.client
import json
import os
import subprocess
import sys
import threading
import time

from . import demo, programs, redis, tool
from .process import read, spawn, wait_for
from .programs import Unwell

HERE = os.path.dirname(os.path.abspath(__file__))


class Course:
    """One program and its load. `hosts`: lib.hosts.Hosts; it starts on `source`."""
    send_options = ()
    word = ""  # in the command line of the program

    def __init__(self, context, hosts, folder):
        self.context, self.hosts, self.folder = context, hosts, folder
        self.word = f"{folder}/program"
        self.program = self.start(self.word, self.hosts.enter("source"), hosts.namespace("source"))

    def start(self, folder, prefix, ns):
        raise NotImplementedError

    def ready(self):
        self.program.ready()

    def after_move(self, n, window):
        """The n-th move is over; `window`: when nothing could answer (seconds of CLOCK_REALTIME)."""
        self.program.check()

    def finish(self):
        """After the last move; gives what there is to tell."""
        self.program.check()
        return ""

    def close(self):
        self.program.end()


class Wild(Course):
    def start(self, folder, prefix, ns):
        seed = self.context.seed or int(time.time())
        with open(f"{self.folder}/seed", "w") as f:
            f.write(str(seed))
        return programs.Workload("wild", os.path.join(self.context.workloads, "wild"), [str(seed), str(self.context.pace)], folder,
                                 prefix, ns)

    def after_move(self, n, window):
        if text := read(f"{self.word}/failures"):
            raise Unwell(f"wild (seed {read(self.folder + '/seed')}): {text.strip()}")
        try:
            super().after_move(n, window)
        except Unwell as e:
            raise Unwell(f"{e}; failures: {read(self.word + '/failures')}") from None


class Nginx(Course):
    """Clients ask all the time; a request may fail only if it touches a downtime."""
    send_options = ("--tcp-close",)
    SLACK = 0.05

    def __init__(self, context, hosts, folder):
        self.end, self.counts, self.failed, self.windows, self.clients = threading.Event(), [0, 0], [], [], []
        super().__init__(context, hosts, folder)

    def start(self, folder, prefix, ns):
        self.word = f"{folder}/nginx.conf"
        return programs.Nginx(folder, prefix, ns)

    def ready(self):
        self.program.ready()
        self.body = b"page " * 10000
        self.clients = [threading.Thread(target=lambda i=i: self.hosts.network.call("client", lambda: self.ask_on(i))) for i in (0, 1)]
        for c in self.clients:
            c.start()
        wait_for(lambda: min(self.counts) > 20, "nginx's clients", 20)

    def ask_on(self, i):
        addresses = [self.hosts.network.address(h) for h in ("source", "destination")]
        while not self.end.is_set():
            started, errors = time.time(), []
            for a in list(addresses):
                error = self.ask(a)
                if error is None:
                    break
                errors.append(error)
                addresses.append(addresses.pop(0))
            if len(errors) == len(addresses) or any(e.startswith("!") for e in errors):
                self.failed.append((started, time.time(), "; ".join(errors)))
            else:
                self.counts[i] += 1
            time.sleep(0.002)

    def ask(self, address):
        """None if the answer is right, else what was wrong; "!": that must never be."""
        c = http.client.HTTPConnection(address, self.program.port, timeout=3)
        try:
            c.request("GET", "/page")
            r = c.getresponse()
            body = r.read()
            return None if r.status == 200 and body == self.body else f"! status {r.status}, {len(body)} bytes"
        except (OSError, http.client.HTTPException) as e:
            return f"{address}: {e!r}"
        finally:
            c.close()

    def after_move(self, n, window):
        self.windows.append((window[0] - self.SLACK, window[1] + self.SLACK))
        seen = list(self.counts)
        wait_for(lambda: all(now > before + 5 for now, before in zip(self.counts, seen)), "nginx to answer its clients", 20)
        self.judge()
        self.program.check()

    def judge(self):
        for start, end, why in list(self.failed):
            if "!" in why or not any(start < b and end > a for a, b in self.windows):
                raise Unwell(f"a request at {start:.3f} to {end:.3f} failed outside of downtimes {self.windows[-2:]}: {why}")

    def finish(self):
        self.stop()
        self.judge()
        self.program.check()
        return f"{sum(self.counts)} requests answered, {len(self.failed)} failed in downtimes"

    def stop(self):
        self.end.set()
        for c in self.clients:
            if c.is_alive():
                c.join(10)

    def close(self):
        self.stop()
        super().close()


class Redis(Course):
    """A client writes all the time; now and then what was acknowledged is replayed into another server and compared."""
    send_options = ("--tcp-close",)
    CHECK_EVERY = 10

    def __init__(self, context, hosts, folder):
        self.writer = self.replica = None
        self.segment = self.commands = self.moved = 0
        super().__init__(context, hosts, folder)

    def start(self, folder, prefix, ns):
        program = programs.Redis(folder, prefix, ns)
        self.port = program.port
        return program

    def ready(self):
        wait_for(lambda: programs.quietly(self.program.client), "redis-server to answer", 20)
        self.run_id = self.program.info("run_id")
        folder = f"{self.folder}/replica"
        os.makedirs(folder)
        self.replica = spawn(["redis-server", "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", folder,
                              "--enable-debug-command", "yes"], log=f"{folder}/log", cwd=folder,
                             prefix=self.hosts.network.enter("client"))
        wait_for(lambda: programs.quietly(lambda: self.at_replica("PING")), "the replica to answer", 20)
        self.start_writer()

    def at_replica(self, *command):
        def talk():
            client = redis.Client("127.0.0.1", self.port, 60.0)
            try:
                return client.command(*command)
            finally:
                client.close()
        return self.hosts.network.call("client", talk)

    def start_writer(self):
        self.segment += 1
        self.records = f"{self.folder}/client-{self.segment}"
        os.makedirs(self.records)
        addresses = [self.hosts.network.address(h) for h in ("source", "destination")]
        self.writer = spawn([sys.executable, f"{HERE}/writer.py", "--seed", self.segment, "--rest", self.context.rest, self.records,
                             self.port, self.context.mib, *addresses], log=f"{self.records}.log",
                            prefix=self.hosts.network.enter("client"))
        self.written(50, 60)

    def progress(self):
        if self.writer.poll() is not None:
            raise Unwell(f"the writing client ended: {tool.tail(self.records + '.log')}")
        text = read(f"{self.records}/progress")
        return json.loads(text) if text else {"batches": 0, "phase": ""}

    def written(self, batches, seconds):
        start = self.progress()["batches"]
        wait_for(lambda: (p := self.progress())["phase"] == "writing" and p["batches"] > start + batches, "the client to write", seconds)

    def after_move(self, n, window):
        self.written(20, 30)
        self.moved = n
        if n % self.CHECK_EVERY == 0:
            self.compare()
            self.start_writer()

    def compare(self):
        """All that was acknowledged, and nothing else, is in the moved server."""
        with open(f"{self.records}/stop", "w"):
            pass
        wait_for(lambda: self.writer.poll() is not None, "the writing client to end", 60)
        if self.writer.returncode != 0:
            raise Unwell(f"the writing client failed: {tool.tail(self.records + '.log')}")
        report = json.loads(read(f"{self.records}/progress"))
        self.commands += report["commands"]
        self.hosts.network.call("client", lambda: demo.replay(f"{self.records}/acknowledged", self.port, report["commands"]))
        got, want = self.program.ask("DEBUG", "DIGEST"), self.at_replica("DEBUG", "DIGEST")
        if got != want:
            raise Unwell(f"after {self.moved} moves redis-server's digest is {got}, that of the acknowledged writes {want}")
        if self.program.info("run_id") != self.run_id:
            raise Unwell("another redis-server answers")
        os.unlink(f"{self.records}/acknowledged")

    def finish(self):
        if self.writer.poll() is None:
            self.compare()
        return f"{self.commands} acknowledged writes replayed, digests equal"

    def close(self):
        for p in (self.writer, self.replica):
            if p is not None and p.poll() is None:
                p.kill()
                try:
                    p.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    pass
        super().close()


COURSES = {"wild": Wild, "redis": Redis, "nginx": Nginx}
NEEDS = {"redis": "redis-server", "nginx": "nginx"}


"""Moves an unmodified redis-server, under a writing client, between two hosts (network namespaces) over TLS, and proves
that nothing acknowledged was lost. Exit code 0 only with the proof."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lib import netns, redis, remains, tool  # noqa: E402
from lib.process import Deadline, become_subreaper, descendants, find_moved, kill_all, read, spawn, wait_for  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PORT = 6379
HOSTS = {"source": "10.77.0.1/24", "destination": "10.77.0.2/24", "client": "10.77.0.3/24"}


class DemoFailed(Exception):
    pass


def say(text):
    print(text, flush=True)


class Demo:
    def __init__(self, options):
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="demo-")
        self.network = self.server = self.writer = self.receiver = self.replay = None
        self.moved = None

    def run(self):
        self.network = netns.Network(f"demo{os.getpid()}", HOSTS)
        say(f"== three hosts: source {self.network.address('source')}, destination {self.network.address('destination')}, "
            f"client {self.network.address('client')}; the source's clocks are 100,000 s ahead")
        self.start_server()
        self.start_writer()
        if self.options.dry_run:
            self.pretend()
        else:
            self.move()
        report = self.finish_writing()
        return self.prove(report)

    def redis_command(self, port, folder):
        os.makedirs(folder, exist_ok=True)
        return ["redis-server", "--port", port, "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no",
                "--enable-debug-command", "yes", "--dir", folder]

    def start_server(self):
        folder = os.path.join(self.folder, "redis")
        self.server = spawn(self.redis_command(PORT, folder), log=os.path.join(self.folder, "redis.log"), cwd=folder,
                            prefix=[*self.network.enter("source"), *netns.OTHER_CLOCKS])
        wait_for(lambda: self.ask("source", PORT, "PING") == b"PONG", "redis-server to answer", 20)
        version = self.ask("source", PORT, "INFO", "server").decode().split("redis_version:")[1].split()[0]
        say(f"== redis-server {version}, process {self.server.pid}, runs on the source")

    def ask(self, host, port, *command, timeout=120.0, tolerant=True):
        def talk():
            client = redis.Client("127.0.0.1", port, timeout)
            try:
                return client.command(*command)
            finally:
                client.close()
        try:
            return self.network.call(host, talk)
        except (OSError, redis.RedisError):
            if not tolerant:
                raise
            return None

    def start_writer(self):
        folder = os.path.join(self.folder, "client")
        os.makedirs(folder)
        addresses = [self.network.address("source"), self.network.address("destination")]
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "writer.py")
        say(f"== the client loads {self.options.mib} MiB, then goes on writing")
        self.writer = spawn([sys.executable, script, folder, PORT, self.options.mib, *addresses],
                            log=os.path.join(self.folder, "client.log"), prefix=self.network.enter("client"))
        self.progress_until(lambda p: p["phase"] == "writing" and p["batches"] > 100, "the data to be loaded", 180)
        used = self.ask("source", PORT, "INFO", "memory").decode().split("used_memory_human:")[1].split()[0]
        say(f"   loaded; redis-server uses {used}; writes go on")
        start = self.progress()["batches"]
        self.progress_until(lambda p: p["batches"] > start + 200, "the client to write", 60)

    def progress(self):
        text = read(os.path.join(self.folder, "client", "progress"))
        return json.loads(text) if text else None

    def progress_until(self, condition, what, seconds):
        def reached():
            if self.writer.poll() is not None:
                raise DemoFailed(f"the client ended: {tool.tail(self.folder + '/client.log')}")
            p = self.progress()
            return p if p and condition(p) else None
        return wait_for(reached, what, seconds, 0.02)

    def move(self):
        t = tool.Tool(self.options.migrate, self.folder, self.options.send_arg, self.options.receive_arg)
        keys = tool.Keys(self.options.migrate, os.path.join(self.folder, "keys"), ["source", "destination"])
        self.receiver = t.receive(self.network, "destination", keys, options=["--accept", "source"])
        say("== destination$ migrate receive --listen 10.77.0.2:7400 --once --accept source ...")
        say(f"== source$ migrate send 10.77.0.2:7400 pid:{self.server.pid} --tcp-close ...")
        pid, comm = self.server.pid, read(f"/proc/{self.server.pid}/comm").strip()
        sender = t.send(self.network, "source", "destination", keys, pid, options=["--tcp-close"], wait=False)
        self.print_phases(sender, os.path.join(self.folder, "send.log"))
        if sender.returncode != 0:
            raise DemoFailed(f"migrate send exited {sender.returncode}:\n{tool.tail(self.folder + '/send.log', 8)}\n"
                             f"the destination said:\n{tool.tail(self.folder + '/receive.log', 8)}")
        self.server.wait(timeout=10)
        self.server = None
        self.moved = wait_for(lambda: find_moved(pid, comm), "redis-server at the destination", 10)
        say(f"   redis-server runs on the destination; in its namespace it still is process {pid}")
        start = self.progress_until(lambda p: p["ack_after_ns"] is not None, "the client to reach the moved server", 60)
        self.progress_until(lambda p: p["batches"] > start["batches"] + 200, "the client to write to the moved server", 60)

    def print_phases(self, sender, log):
        """Prints the sender's events as they come, of a phase's progress just the first and the last."""
        started, shown, held = time.monotonic(), 0, None
        deadline = started + 180
        while True:
            ended = sender.poll() is not None
            found = tool.events(read(log))
            for event in found[shown:]:
                if held and held[1].get("event") != event.get("event"):
                    self.print_event(*held)
                    held = None
                if held is None and event.get("event") != getattr(self, "last_name", None):
                    self.print_event(time.monotonic() - started, event)
                else:
                    held = (time.monotonic() - started, event)
                self.last_name = event.get("event")
            shown = len(found)
            if ended:
                break
            if time.monotonic() > deadline:
                raise DemoFailed("migrate send did not end in time")
            time.sleep(0.02)
        if held:
            self.print_event(*held)

    @staticmethod
    def print_event(seconds, event):
        say(f"   {seconds:7.3f} s  {event.get('event', '?'):<22} {event.get('text', '')}")

    def pretend(self):
        """--dry-run: stops the server for a moment and cuts the client's connection; nothing moves."""
        say("== dry run: the server is stopped for 0.3 s and the client's connection is cut")
        client = self.network.call("source", lambda: redis.Client("127.0.0.1", PORT))
        client.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.close()
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(self.server.pid, signal.SIGCONT)
        start = self.progress()
        self.progress_until(lambda p: p["batches"] > start["batches"] + 200, "the client to go on", 30)

    def finish_writing(self):
        with open(os.path.join(self.folder, "client", "stop"), "w"):
            pass
        if wait_for(lambda: self.writer.poll() is not None, "the client to end", 30) and self.writer.returncode != 0:
            raise DemoFailed(f"the client failed: {tool.tail(self.folder + '/client.log')}")
        p = self.progress()
        say(f"== the client ends: {p['batches']} batches, {p['commands']} writes acknowledged; {p['reconnects']} reconnections, "
            f"{p['repeated']} batches sent again")
        if p["ack_before_ns"] is not None and p["ack_after_ns"] is not None:
            say(f"   DOWNTIME as the client saw it (CLOCK_REALTIME, last acknowledgement before to first after): "
                f"{(p['ack_after_ns'] - p['ack_before_ns']) / 1e6:.1f} ms")
        elif not self.options.dry_run:
            raise DemoFailed("the client never reached the moved server")
        return p

    def prove(self, report):
        say("== proof: all acknowledged writes are replayed, in order, into a fresh redis-server")
        where = "source" if self.options.dry_run else "destination"
        got = self.ask(where, PORT, "DEBUG", "DIGEST", tolerant=False).decode()
        port = PORT + 1
        folder = os.path.join(self.folder, "replay")
        self.replay = spawn(self.redis_command(port, folder), log=os.path.join(self.folder, "replay.log"), cwd=folder,
                            prefix=self.network.enter("client"))
        wait_for(lambda: self.ask("client", port, "PING") == b"PONG", "the fresh redis-server", 20)
        self.network.call("client", lambda: replay(os.path.join(self.folder, "client", "acknowledged"), port, report["commands"]))
        want = self.ask("client", port, "DEBUG", "DIGEST", tolerant=False).decode()
        keys = self.ask(where, PORT, "DBSIZE"), self.ask("client", port, "DBSIZE")
        name = "server" if self.options.dry_run else "moved server"
        say(f"   {name + ':':<14} DEBUG DIGEST {got}  ({keys[0]} keys)\n   {'replay:':<14} DEBUG DIGEST {want}  ({keys[1]} keys)")
        if got != want or not keys[0]:
            raise DemoFailed("the digests differ")
        say("   equal: nothing acknowledged was lost, nothing was invented")
        return True

    def close(self):
        victims = []
        for p in (self.writer, self.receiver, self.server, self.replay):
            if p is not None and p.poll() is None:
                victims += descendants(p.pid)
        if self.moved and self.moved not in victims:
            victims += descendants(self.moved)
        kill_all(victims)
        kill_all([p for p in descendants(os.getpid()) if p != os.getpid()])
        for p in (self.writer, self.receiver, self.server, self.replay):
            if p is not None:
                try:
                    p.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    pass
        if self.network:
            self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def replay(path, port, commands):
    """Sends the recorded bytes and counts the answers."""
    client = redis.Client("127.0.0.1", port, 120.0)
    import threading
    failure = []

    def send():
        try:
            with open(path, "rb") as f:
                while chunk := f.read(1 << 20):
                    client.send(chunk)
        except OSError as e:
            failure.append(e)
    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(commands):
        answer = client.reply()
        if isinstance(answer, redis.RedisError):
            raise DemoFailed(f"replay: {answer}")
    thread.join()
    client.close()
    if failure:
        raise failure[0]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--mib", type=int, default=512, help="data in redis-server")
    p.add_argument("--migrate", default=os.path.join(ROOT, "build", "release", "migrate", "migrate"))
    p.add_argument("--dry-run", action="store_true", help="move nothing: try client and proof only")
    p.add_argument("--send-arg", action="append", default=[])
    p.add_argument("--receive-arg", action="append", default=[])
    options = p.parse_args()
    if os.geteuid() != 0:
        sys.exit("demo: needs root, for network namespaces and for moving processes")
    become_subreaper()
    # Ctrl-C and an ending terminal clean up like any failure.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = remains.snapshot()
    demo = Demo(options)
    ok = False
    try:
        ok = demo.run()
    except (DemoFailed, tool.Failed, Deadline, OSError, redis.RedisError) as e:
        say(f"demo: {e}")
    except KeyboardInterrupt:
        say("demo: interrupted")
    finally:
        demo.close()
    try:
        wait_for(lambda: not remains.new_since(before), "clean-up", 10, 0.1)
    except Deadline:
        say("demo: left behind: " + "; ".join(remains.new_since(before)))
        ok = False
    say("== demo passed" if ok else "== demo FAILED")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

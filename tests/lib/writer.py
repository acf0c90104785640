"""A client that writes to redis-server and writes down what was acknowledged.

    writer.py [--seed N] [--rest MS] FOLDER PORT MIB ADDRESS...

One connection, pipelined batches. Every batch can be repeated without changing the outcome, so one whose answer got lost
is sent again until it is acknowledged: in the end the server must hold exactly what was acknowledged, in order. When no
answer comes, the other addresses are tried too. Files in FOLDER:
- `acknowledged`: the batches' bytes, in Redis' protocol, as they were sent;
- `progress`: a JSON object, replaced after every few batches;
- `stop`: when it appears, the client ends."""
import argparse
import json
import os
import random
import select
import sys
import time

if __package__:
    from . import redis
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import redis

QUIET = 0.03         # seconds without an answer after which other addresses are tried
GIVE_UP = 180.0      # seconds without any acknowledgement
LOAD_VALUE = 8192


def load_batch(n, rng):
    return [("SET", f"load:{n * 64 + i}", rng.randbytes(LOAD_VALUE)) for i in range(64)]


def write_batch(n, rng, loaded):
    """Overwrites loaded data and changes strings, hashes, sets, sorted sets; all repeatable."""
    commands = []
    for _ in range(25):
        k = rng.randrange(1000)
        commands += [("SET", f"load:{rng.randrange(max(loaded, 1))}", rng.randbytes(rng.randrange(64, 2048))),
                     rng.choice([("SET", f"string:{k}", f"{n} {rng.random()}"), ("HSET", f"hash:{k % 50}", k, n),
                                 ("SADD", f"set:{k % 20}", n), ("ZADD", f"zset:{k % 20}", rng.random(), k),
                                 ("DEL", f"string:{k}"), ("SREM", f"set:{k % 20}", n - 1)])]
    commands.append(("SET", "last-batch", n))
    return commands


class Writer:
    def __init__(self, folder, port, addresses):
        self.folder, self.port, self.addresses = folder, port, addresses
        self.client = self.at = None
        self.last_ack = time.monotonic()
        self.batches = self.commands = self.reconnects = self.repeated = 0
        self.ack_before = self.ack_after = None
        self.longest_gap_ms, self.previous_ack = 0.0, None
        self.record = open(os.path.join(folder, "acknowledged"), "wb", buffering=1 << 20)

    def connect(self, address, timeout):
        """A connection to a server that answers, or None."""
        client = None
        try:
            client = redis.Client(address, self.port, timeout)
            client.command("PING")
            client.socket.settimeout(5.0)
            return client
        except (OSError, redis.RedisError):
            if client:
                client.close()
            return None

    def try_addresses(self, addresses):
        for address in addresses:
            client = self.connect(address, 0.1)
            if client:
                if self.client:
                    self.client.close()
                    self.reconnects += 1
                if self.at not in (None, address):
                    self.ack_before = self.previous_ack
                    self.ack_after = None
                self.client, self.at = client, address
                return True
        return False

    def wait_for_answer(self):
        """True when an answer comes over the connection; False when the batch has to go over another one."""
        while True:
            if self.client.buffer or select.select([self.client.socket], [], [], QUIET)[0]:
                return True
            if time.monotonic() - self.last_ack > GIVE_UP:
                raise TimeoutError("no acknowledgement for too long")
            if self.try_addresses([a for a in self.addresses if a != self.at]):
                return False

    def send_until_acknowledged(self, commands):
        data = b"".join(redis.encode(*c) for c in commands)
        while True:
            try:
                self.client.send(data)
                if self.wait_for_answer():
                    for _ in commands:
                        answer = self.client.reply()
                        if isinstance(answer, redis.RedisError):
                            raise SystemExit(f"redis-server says {answer}")
                    break
            except OSError:
                self.reconnect()
            self.repeated += 1
        self.acknowledged(data, len(commands))

    def reconnect(self):
        while not self.try_addresses(self.addresses):
            if time.monotonic() - self.last_ack > GIVE_UP:
                raise TimeoutError("no connection for too long")
            time.sleep(0.005)

    def acknowledged(self, data, count):
        now = time.time_ns()
        self.last_ack = time.monotonic()
        if self.ack_before is not None and self.ack_after is None:
            self.ack_after = now
        if self.previous_ack is not None:
            self.longest_gap_ms = max(self.longest_gap_ms, (now - self.previous_ack) / 1e6)
        self.previous_ack = now
        self.record.write(data)
        self.batches += 1
        self.commands += count

    def report(self, phase):
        self.record.flush()
        path = os.path.join(self.folder, "progress")
        with open(path + ".new", "w") as f:
            json.dump({"phase": phase, "batches": self.batches, "commands": self.commands, "at": self.at, "repeated": self.repeated,
                       "reconnects": self.reconnects, "longest_gap_ms": self.longest_gap_ms, "ack_before_ns": self.ack_before,
                       "ack_after_ns": self.ack_after}, f)
        os.rename(path + ".new", path)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--rest", type=float, default=0, help="milliseconds between two batches")
    p.add_argument("folder")
    p.add_argument("port", type=int)
    p.add_argument("mib", type=int)
    p.add_argument("addresses", nargs="+")
    o = p.parse_args()
    folder, port, mib, addresses = o.folder, o.port, o.mib, o.addresses
    rng = random.Random(o.seed)
    w = Writer(folder, port, addresses)
    w.reconnect()
    loads = mib * 1024 * 1024 // (64 * LOAD_VALUE)
    for n in range(loads):
        w.send_until_acknowledged(load_batch(n, rng))
    w.longest_gap_ms = 0.0
    w.report("loaded")
    end = time.monotonic() + 3600
    n = 0
    while time.monotonic() < end and not os.path.exists(os.path.join(folder, "stop")) and os.path.isdir(folder):
        n += 1
        w.send_until_acknowledged(write_batch(n, rng, loads * 64))
        time.sleep(o.rest / 1000)
        if n % 10 == 0 or w.ack_after == w.previous_ack:
            w.report("writing")
    w.report("ended")
    w.record.close()


if __name__ == "__main__":
    main()

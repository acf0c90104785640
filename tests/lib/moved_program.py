"""A Python program as people write them: threads, a queue, a lock, a subprocess with pipes, a timer, a temporary file,
generators in the middle of their work. Follows the contract of tests/workloads/README.md."""
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time

FOLDER = sys.argv[1]


class Counter(threading.Thread):
    """Passes numbers through a `cat` and expects them back in order."""

    def __init__(self):
        super().__init__(daemon=True)
        self.cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.n, self.error = 0, None

    def run(self):
        while self.error is None:
            self.n += 1
            self.cat.stdin.write(b"%d\n" % self.n)
            self.cat.stdin.flush()
            line = self.cat.stdout.readline()
            if line != b"%d\n" % self.n:
                self.error = f"cat gave {line!r} for {self.n}"
            time.sleep(0.003)


def fibonacci():
    a, b = 0, 1
    while True:
        yield a
        a, b = b, (a + b) % (1 << 61)


class Program:
    def __init__(self):
        self.counter = Counter()
        self.jobs, self.done = queue.Queue(), queue.Queue()
        self.workers = [threading.Thread(target=self.work, daemon=True) for _ in range(4)]
        self.series, self.expected, self.steps = fibonacci(), fibonacci(), 0
        self.scratch = tempfile.TemporaryFile(dir=FOLDER)
        self.scratch.write(b"scratch" * 1000)
        self.scratch.flush()
        self.started = time.monotonic()
        self.data = {i: str(i) * 10 for i in range(50000)}
        self.pid, self.threads = os.getpid(), None

    def work(self):
        while True:
            n = self.jobs.get()
            self.done.put((n, n * n))

    def verify(self):
        if self.counter.error:
            return self.counter.error
        n, end = self.counter.n, time.monotonic() + 10
        while self.counter.n == n:
            if time.monotonic() > end:
                return "the thread with the subprocess does not go on"
            time.sleep(0.01)
        for i in range(100):
            self.jobs.put(i)
        squares = dict(self.done.get(timeout=10) for _ in range(100))
        if squares != {i: i * i for i in range(100)}:
            return "the workers answer wrongly"
        if any(next(self.series) != next(self.expected) for _ in range(1000)):
            return "a generator lost its place"
        if os.getpid() != self.pid or self.counter.cat.poll() is not None:
            return "pid changed or subprocess ended"
        if os.pread(self.scratch.fileno(), 7000, 0) != b"scratch" * 1000:
            return "the temporary file changed"
        if any(self.data[i] != str(i) * 10 for i in range(50000)):
            return "data changed"
        if time.monotonic() < self.started:
            return "the monotonic clock went back"
        if threading.active_count() != self.threads:
            return "the number of threads changed"
        return None


def put(name, text):
    path = os.path.join(FOLDER, name)
    with open(path + ".new", "w") as f:
        f.write(text)
    os.rename(path + ".new", path)


def main():
    program = Program()
    program.counter.start()
    for w in program.workers:
        w.start()
    program.threads = threading.active_count()
    answered, end = None, time.monotonic() + 1200
    put("status", f"READY {os.getpid()}\n")
    while os.path.isdir(FOLDER) and time.monotonic() < end:
        try:
            with open(os.path.join(FOLDER, "check")) as f:
                token = f.read()
        except OSError:
            token = None
        if token and token != answered:
            answered = token
            try:
                failure = program.verify()
            except Exception as e:
                failure = f"{type(e).__name__}: {e}"
            put("result", f"{token} {'FAIL ' + failure if failure else 'PASS'}\n")
        time.sleep(0.005)


main()

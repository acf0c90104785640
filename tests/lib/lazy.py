"""A lazy migration by the low-level verbs: dump --lazy-pages, lazy-pages --page-server, restore --lazy-pages. Source and
destination are one machine, so the tree comes to life in a pid namespace of its own, where its numbers are free."""
import os
import shutil
import signal
import sys

from . import tool
from .process import find_moved, kill_tree, read, spawn, wait_for

# The init of that namespace: restores, says how that ended, and collects orphans.
INIT = """import os, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1] + ".new", "w") as f: f.write(str(code))
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    try: os.wait()
    except ChildProcessError: __import__("signal").pause()
"""


def started(binary, log, options, status_of, prefix=(), env=None):
    """Runs `migrate` with a status descriptor; gives the process once it has told it, and fails if it ends before."""
    process, status = begun(binary, log, options, prefix, env)
    with status:
        if status.read(1) != b"\0":
            process.wait(timeout=20)
            raise tool.Failed(f"{status_of} is not ready, exit {process.returncode}: {tool.tail(log)}")
    return process


def begun(binary, log, options, prefix=(), env=None):
    """The same, without waiting: gives the process and the status descriptor's other end."""
    ready, told = os.pipe()
    try:
        process = spawn([binary, *options, "--status-fd", told], log=log, prefix=prefix, pass_fds=(told,), env=env)
    finally:
        os.close(told)
    return process, os.fdopen(ready, "rb", buffering=0)


def tls_options(keys, name):
    return ["--tls", *(word.replace("--", "--tls-") if word.startswith("--") else word for word in keys.options(name))]


class Move:
    """One migration of `pid`. Folders: `folder`/source and `folder`/destination, whose images are copied from the first."""

    def __init__(self, binary, folder, pid, inner, comm, address="127.0.0.1", port=7460, source=(), destination=(), source_options=(),
                 destination_options=()):
        self.binary, self.pid, self.inner, self.comm = binary, pid, inner, comm
        self.address, self.port = address, port
        self.source, self.destination = list(source), list(destination)
        self.source_options, self.destination_options = list(source_options), list(destination_options)
        self.here, self.there = os.path.join(folder, "source"), os.path.join(folder, "destination")
        for path in (folder, self.here, self.there):
            os.makedirs(path, exist_ok=True)
        self.dump_log, self.daemon_log = os.path.join(self.here, "dump.log"), os.path.join(self.there, "lazy.log")
        self.dumper = self.daemon = self.namespace = None
        self.restores = 0

    def dump(self, *options):
        """Returns when its page server listens."""
        self.dumper = started(self.binary, self.dump_log, ["dump", "-t", self.pid, "-D", self.here, "-v4", "--lazy-pages", "--address",
                                                          self.address, "--port", self.port, *self.source_options, *options],
                              "dump", self.source)
        return self.dumper

    def copy(self):
        """What a user does with scp."""
        for file in os.listdir(self.here):
            if file.endswith(".img"):
                shutil.copy(os.path.join(self.here, file), self.there)

    def lazy_pages(self, *options, port=None, env=None):
        self.daemon = started(self.binary, self.daemon_log,
                              ["lazy-pages", "--page-server", "--address", self.address, "--port", port or self.port, "-D", self.there, "-v4",
                               *self.destination_options, *options], "lazy-pages", self.destination, env)
        return self.daemon

    def restore(self, *options, timeout=60):
        """Gives the exit code."""
        self.end_namespace()
        self.restores += 1
        done = os.path.join(self.there, f"restored-{self.restores}")
        self.namespace = spawn([sys.executable, "-c", INIT, done, self.binary, "restore", "-D", self.there, "-d", "-v4", "--lazy-pages",
                                *options], log=os.path.join(self.there, "restore.log"),
                               prefix=[*self.destination, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
        wait_for(lambda: os.path.exists(done), "restore to end", timeout)
        return int(read(done))

    def moved(self):
        """The pid of the root at the destination."""
        return wait_for(lambda: find_moved(self.inner, self.comm), "the tree at the destination", 10)

    def expect_restored(self, *options):
        code = self.restore(*options)
        if code != 0:
            raise tool.Failed(f"restore exited {code}: {tool.tail(self.there + '/restore.log')}")
        return self.moved()

    def ended(self, which, seconds=60):
        """Waits for `dumper` or `daemon` to end by itself; gives its exit code."""
        process = getattr(self, which)
        wait_for(lambda: process.poll() is not None, f"{which} to end", seconds)
        return process.returncode

    def expect_done(self):
        """Both sides end when all has come."""
        for which, log in (("daemon", self.daemon_log), ("dumper", self.dump_log)):
            code = self.ended(which)
            if code != 0:
                raise tool.Failed(f"{which} exited {code}: {tool.tail(log)}")

    def end_namespace(self):
        if self.namespace is not None:
            kill_tree(self.namespace.pid)
            self.namespace.wait(timeout=10)
            self.namespace = None

    def close(self):
        """Whatever has happened: nothing stays."""
        self.end_namespace()
        if self.daemon is not None:
            kill_tree(self.daemon.pid)
            self.daemon.wait()
        if self.dumper is not None and self.dumper.poll() is None:
            # Frozen trees are killed by whoever froze them.
            self.dumper.send_signal(signal.SIGQUIT)
            try:
                wait_for(lambda: self.dumper.poll() is not None, "dump to end", 15)
            finally:
                if self.dumper.poll() is None:
                    self.dumper.kill()
                    self.dumper.wait()

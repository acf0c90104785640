"""Cgroups of a test's own, whose members are killed at once."""
import os
import signal

from .process import read, wait_for
from .skip import Skip


def top(v2):
    """Where the v2 hierarchy is mounted, or the v1 one that freezes; None if it is not."""
    for line in read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" if v2 else kind == "cgroup" and "freezer" in options.split(","):
            return before.split()[4]
    return None


def members(folder):
    return {int(p) for p in read(f"{folder}/cgroup.procs").split()}


def kill_members(folder):
    """As who stops a service with all its processes."""
    if os.path.exists(f"{folder}/cgroup.kill"):
        with open(f"{folder}/cgroup.kill", "w") as f:
            f.write("1")
        return
    for pid in members(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Cgroup:
    """At the top of its hierarchy."""

    def __init__(self, name, v2):
        self.top = top(v2)
        if self.top is None:
            raise Skip(f"no cgroup {'v2' if v2 else 'v1'} hierarchy for it is mounted")
        self.folder = os.path.join(self.top, name)
        os.mkdir(self.folder)

    @staticmethod
    def enter(folder, pid):
        with open(f"{folder}/cgroup.procs", "w") as f:
            f.write(str(pid))

    def prefix(self):
        """Starts a command in it."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self.folder]

    def let_out(self, pid):
        self.enter(self.top, pid)

    def members(self):
        return members(self.folder)

    def kill(self):
        """Also those that fork meanwhile."""
        def empty():
            kill_members(self.folder)
            return not members(self.folder)
        wait_for(empty, "the members of a cgroup to die", 10)

    def close(self):
        if os.path.isdir(self.folder):
            self.kill()
            os.rmdir(self.folder)

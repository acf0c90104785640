"""A memory cgroup of our own, v1 or v2, whose members can be made to run out of memory."""
import os

from .process import read, wait_for
from .skip import Skip

ROOM = 1 << 20  # bytes that are still to be had


def mounts():
    """(mount point, True for v2) of the hierarchies that have the memory controller."""
    for line in read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        top = before.split()[4]
        if kind == "cgroup" and "memory" in options.split(","):
            yield top, False
        if kind == "cgroup2" and "memory" in read(f"{top}/cgroup.controllers").split():
            yield top, True


class MemoryLimit:
    """`name` of the group. In v1 processes are moved into it when their memory is to end: what they have stays charged
    elsewhere. In v2, where the same folders hold freezers, they are started in it, through prefix()."""

    def __init__(self, name):
        found = next(iter(mounts()), None)
        if found is None:
            raise Skip("no cgroup hierarchy with the memory controller is mounted; mount one (v1 or v2) to run this")
        top, self.v2 = found
        self.folder = os.path.join(top, name)
        if self.v2:
            self.write(f"{top}/cgroup.subtree_control", "+memory")
        os.mkdir(self.folder)

    @staticmethod
    def write(path, value):
        with open(path, "w") as f:
            f.write(str(value))

    def prefix(self):
        """Starts a command in the group, in v2."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self.folder] if self.v2 else []

    def exhaust(self, pids):
        if self.v2:
            self.write(f"{self.folder}/memory.swap.max", 0) if os.path.exists(f"{self.folder}/memory.swap.max") else None
            self.write(f"{self.folder}/memory.max", int(read(f"{self.folder}/memory.current")) + ROOM)
            return
        self.write(f"{self.folder}/memory.limit_in_bytes", ROOM)
        for p in pids:
            self.write(f"{self.folder}/cgroup.procs", p)

    def close(self):
        """Its members must have ended, or be about to."""
        def removed():
            try:
                os.rmdir(self.folder)
            except FileNotFoundError:
                return True
            except OSError:
                return False
            return True
        wait_for(removed, "the memory cgroup to empty", 10, 0.05)

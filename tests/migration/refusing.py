"""Programs that cannot be moved, and what a refusal must be like: the program untouched, a sentence that says what to do."""
import os
import re
import subprocess

from lib import programs, snapshot, suite
from lib.process import exists, read, stat_fields, wait_for
from lib.suite import Skip, expect

LIB = os.path.join(suite.ROOT, "tests", "lib")
HAS_FD = "task {pid} has fd {detail}"
NOT_BY_ROOT = "user 65534 may not use here: .*nor may root in its stead: a folder on the way can be changed by others than root"


class Stubborn(programs.Program):
    """lib/stubborn.py with its one thing."""
    name = "stubborn"
    exact_maps = True

    def __init__(self, folder, kind, *arguments, prefix=(), pass_fds=(), own_session=True):
        self.folder, self.ns, self.kind = folder, None, kind
        os.makedirs(folder)
        with open(os.path.join(folder, "output"), "ab") as out:
            self.process = subprocess.Popen([*prefix, "/usr/bin/python3", os.path.join(LIB, "stubborn.py"), folder, kind,
                                             *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            pass_fds=pass_fds, start_new_session=own_session)
        self.pid = self.inner = self.process.pid
        self.everybody = {self.pid}
        self.detail = None

    def ready(self):
        def there():
            self.alive_or_raise()
            return read(os.path.join(self.folder, "status"))
        word, pid, self.detail = wait_for(there, f"{self.kind} to be set up", 20).split(" ", 2)
        if word == "IMPOSSIBLE":
            raise Skip(self.detail)
        self.pid = self.inner = int(pid)

    def beat(self):
        return read(os.path.join(self.folder, "beat"))

    def check(self):
        seen = self.beat()
        wait_for(lambda: self.beat() != seen, f"process {self.pid} to run on", 10)


class Untouched:
    """Checks that a program is afterwards what it was."""

    def __init__(self, program):
        self.program, self.pid = program, program.pid
        program.check()
        self.facts = snapshot.tree_facts(self.pid)
        self.cgroup = read(f"/proc/{self.pid}/cgroup")
        self.start = stat_fields(self.pid)[19]

    def expect(self):
        expect(exists(self.pid) and stat_fields(self.pid)[19] == self.start, f"process {self.pid} is gone")
        self.program.check()
        expect(read(f"/proc/{self.pid}/cgroup") == self.cgroup, f"process {self.pid} is in another cgroup")
        found = snapshot.differences(self.facts, snapshot.tree_facts(self.pid), (r"SigBlk|SigPnd|ShdPnd",))
        expect(not found, "/proc differs:\n  " + "\n  ".join(found))


def expect_sentence(text, patterns, values):
    for pattern in patterns:
        full = pattern.format(**{k: re.escape(str(v)) for k, v in values.items()})
        expect(re.search(full, text), f"nothing matches {full!r} in: {text.strip()[-600:]}")

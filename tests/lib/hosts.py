"""Two hosts between which a program is moved again and again."""
import os
import signal
import subprocess

from . import netns, tool
from .process import all_pids, exists, innermost_pid, kill_tree, read, reap, spawn, stat_fields, wait_for

NAMES = ("source", "destination")  # as their keys are called; each is both in turn


class Hosts:
    """`source` has clocks of its own, 100,000 s ahead: a sleeping process holds its time namespace. `client` is a third host."""

    def __init__(self, binary, folder, short, subnet):
        self.folder, self.short = folder, short
        self.tool = tool.Tool(binary, folder)
        self.clocks = self.network = None
        self.receivers = {}
        try:
            self.network = netns.Network(short, {n: f"{subnet}.{i + 1}/24" for i, n in enumerate((*NAMES, "client"))})
            self.clocks = spawn(["sleep", "100000"], log=f"{folder}/clocks.log", prefix=netns.OTHER_CLOCKS)
            ours = os.readlink("/proc/self/ns/time")
            wait_for(lambda: read(f"/proc/{self.clocks.pid}/comm") == "sleep\n", "the clocks of the source", 10)
            if os.readlink(f"/proc/{self.clocks.pid}/ns/time") == ours:
                raise RuntimeError("the source has no clocks of its own")
            self.keys = tool.Keys(binary, f"{folder}/keys", NAMES)
        except BaseException:
            self.close()
            raise

    def clock_prefix(self, host):
        return [f"--time=/proc/{self.clocks.pid}/ns/time"] if host == "source" else []

    def enter(self, host):
        """Command prefix that runs something on that host, in its clocks."""
        return [*self.network.enter(host), *self.clock_prefix(host)]

    def namespace(self, host):
        return f"{self.short}-{host}"

    def receive(self, host, log, options=(), env=None, prefix=(), once=False):
        """Starts a receiver that serves until it is ended, unless `once`; through `prefix`."""
        p = self.tool.receive(self.network, host, self.keys, options=options, prefix=[*self.clock_prefix(host), *prefix], env=env,
                              once=once, log=log)
        self.receivers[host] = p
        return p

    def send(self, pid, host, log, options=(), env=None, via=None):
        """Starts to move `pid` from `host` to the other one, which is reached at `via` (ADDRESS:PORT); gives the process."""
        other = NAMES[1 - NAMES.index(host)]
        command = [self.tool.binary, "send", via or f"{self.network.address(other)}:7400", f"pid:{pid}", *self.keys.options(host), "--tls-name",
                   other, "--state-dir", f"{self.folder}/state-{host}", "--json", "--parent-may-notice", *options]
        return spawn(command, log=log, prefix=self.enter(host), env=self.tool.environment(host, env))

    def end_receiver(self, host):
        p = self.receivers.pop(host, None)
        if p is not None and p.poll() is None:
            p.send_signal(signal.SIGTERM)
            try:
                p.wait(timeout=10)
            except subprocess.TimeoutExpired:
                kill_tree(p.pid)
                p.wait(timeout=5)

    def close(self):
        for host in list(self.receivers):
            self.end_receiver(host)
        if self.clocks:
            self.clocks.kill()
            self.clocks.wait()
        if self.network:
            self.network.close()


def find_copy(inner, word, old):
    """The task that its own pid namespace, which is not ours, numbers `inner`, that lives, whose command line or working folder
    holds `word` and that is not `old`; or None."""
    ours = os.readlink("/proc/self/ns/pid")
    for p in all_pids():
        try:
            if p == old or os.readlink(f"/proc/{p}/ns/pid") == ours:
                continue
            text = read(f"/proc/{p}/cmdline") + os.readlink(f"/proc/{p}/cwd")
        except OSError:
            continue
        if innermost_pid(p) == inner and exists(p) and word in text:
            return p
    return None


def collect(keep):
    """Reaps zombies that came to us, but for `keep`, children that somebody else waits for."""
    reap([p for p in all_pids() if p not in keep and (f := stat_fields(p)) and f[0] == "Z" and int(f[1]) == os.getpid()])


def descriptors(pid):
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0

"""A program that is moved by post-copy over a slow feed, and what is done to those who bring its pages."""
import json
import os
import signal
import sys

from lib import hosts, programs, remains, tool
from lib.process import all_pids, exists, kill_all, read, stat_fields, wait_for
from lib.suite import expect

TIMEOUTS = {"MIGRATE_TEST_TIMEOUTS": "connect=3000,answer=5000,restore=10000,settle=2000"}
MIB = 64
SLOW = "12M"  # a second: some five seconds of feed


class Move:
    """One program on its way, in the case's process."""

    def __init__(self, context, folder, mode, workload=("memory", str(MIB)), options=("--bandwidth-limit", SLOW), env=None,
                 receiver_env=None, before_switch=None, once=False, program_prefix=(), receiver_options=()):
        """`before_switch`: called with this when the move has begun. `program_prefix`: of the program's command."""
        self.context, self.folder, self.mode, self.once = context, folder, mode, once
        self.options, self.env, self.before_switch = options, env or {}, before_switch
        self.hosts = hosts.Hosts(context.binary, folder, f"p{os.getpid()}", "10.77.90")
        self.receiver_options = receiver_options
        self.program = self.sender = None
        try:
            self.start_receiver(**receiver_env or {})
            name, *arguments = workload
            self.program = programs.Workload(name, f"{context.workloads}/{name}", arguments, f"{folder}/program",
                                             [*self.hosts.enter("source"), *program_prefix], self.hosts.namespace("source"))
            self.program.ready()
            self.program.remember()
            self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self, via=None):
        """Sends it, to the address `via`; returns when it runs at the destination, and its pages follow."""
        self.send(via)
        if self.before_switch:
            self.before_switch(self)
        wait_for(lambda: self.sender.poll() is not None or '"event":"gate-open"' in read(self.log), "the switch", 40, 0.005)
        expect(not self.sender.poll(), f"send ended: {tool.tail(self.log, 5)}")
        self.find_copy()
        wait_for(lambda: "/migrate-" not in read(f"/proc/{self.copy}/cgroup"), "the copy to leave its gate", 10)

    def send(self, via=None):
        self.old, self.log = self.program.pid, f"{self.folder}/send"
        self.sender = self.hosts.send(self.old, "source", self.log, ["--mode", self.mode, "--max-rounds", "1", *self.options],
                                      env={**TIMEOUTS, **self.env}, via=via)

    def find_session(self):
        self.session = json.loads(next(line for line in read(self.log).splitlines() if '"event":"begin"' in line))["session"]

    def find_copy(self):
        self.find_session()
        self.copy = wait_for(lambda: hosts.find_copy(self.program.inner, f"{self.folder}/program", self.old), "the moved tree", 10)

    def start_receiver(self, **env):
        self.hosts.receive("destination", f"{self.folder}/receive", env={**TIMEOUTS, **env}, prefix=self.prefix(), once=self.once,
                           options=self.receiver_options)

    def prefix(self):
        """Of the receiver's command."""
        return []

    # Who is who.

    def named(self, *words):
        """Our processes of this session whose command lines hold these."""
        def matches(pid):
            line = read(f"/proc/{pid}/cmdline").replace("\0", " ")
            return line.startswith("migrate ") and all(w in line for w in words) and (stat_fields(pid) or "Z")[0] != "Z"
        return [p for p in all_pids() if quietly(matches, p)]

    def lazy(self):
        return self.named("guardian-lazy", self.session)

    def kill_lazy(self):
        """All at once: none may follow another."""
        victims = self.lazy()
        for p in victims:
            quietly(os.kill, p, signal.SIGSTOP)
        kill_all(victims)

    def lazy_daemon(self):
        """The one with threads."""
        return [p for p in self.lazy() if quietly(lambda q: len(os.listdir(f"/proc/{q}/task")) > 1, p)]

    def holders(self):
        return [p for p in self.lazy() if p not in self.lazy_daemon()]

    def lazy_complete(self):
        """Whether the daemon serves and both holders are there: then any one of them may be killed."""
        return len(self.lazy()) == 3 and len(self.lazy_daemon()) == 1

    def children(self, verb, parent):
        return [p for p in self.named(verb) if int(stat_fields(p)[1]) == parent]

    def source_guardian(self):
        return self.children("guardian-source", self.sender.pid)

    def destination_agent(self):
        daemon = self.hosts.receivers["destination"].pid
        return [p for p in all_pids() if quietly(lambda q: int(stat_fields(q)[1]) == daemon and stat_fields(q)[0] != "Z", p)]

    def destination_guardian(self):
        return [g for agent in self.destination_agent() for g in self.children("guardian-destination", agent)]

    def is_feeding(self):
        return exists(self.old) and not self.state("destination") == "WHOLE"

    def expect_feeding(self):
        expect(self.is_feeding(), "it was whole before anything was done")

    def state(self, side):
        text = read(f"{self.folder}/state-{side}/{self.session}.{side}.journal")
        return json.loads(text)["state"] if text else ""

    # How it ends.

    def send_ends(self, code, seconds=40):
        """`code`: None is any."""
        wait_for(lambda: self.sender.poll() is not None, "send to end", seconds)
        expect(code in (None, self.sender.returncode), f"send exited {self.sender.returncode}: {tool.tail(self.log, 5)}")

    def arrives(self, code=0):
        """All of it, whoever sees to that."""
        wait_for(lambda: self.state("destination") in ("WHOLE", "DONE"), "the copy to be whole", 60)
        wait_for(lambda: not exists(self.old), "the tree at the source to be gone", 40)
        self.send_ends(code, 20)
        wait_for(lambda: self.state("source") == "DONE" and self.state("destination") == "DONE", "both journals to say DONE", 20)
        wait_for(lambda: not self.lazy(), "the lazy host to leave", 10)
        self.program.reap_old(*[p.pid for p in (*self.hosts.receivers.values(), self.hosts.clocks, self.sender)])
        self.program.moved_to(self.copy, self.hosts.namespace("destination"))
        self.program.check()
        wait_for(lambda: not self.named("guardian-watch", self.session), "the watches to leave", 10)

    def close(self):
        for path in ("send", "receive"):
            if os.path.exists(f"{self.folder}/{path}"):
                with open(f"{self.folder}/{path}.said", "w") as f:
                    f.write(read(f"{self.folder}/{path}"))
        if self.sender and self.sender.poll() is None:
            self.sender.kill()
            self.sender.wait()
        if self.program:
            copy = hosts.find_copy(self.program.inner, f"{self.folder}/program", self.program.pid)
            if copy:
                kill_all([copy])
            self.program.end()
        self.hosts.close()
        if hasattr(self, "session"):
            self.kill_lazy()
        kill_all(self.named(self.folder))
        if hasattr(self, "session"):
            if sys.exc_info()[0] is None:
                wait_for(lambda: not remains.cgroups_of([self.session]), "its cgroups to be gone", 10)
            remains.sweep_cgroups([self.session])


def quietly(function, *args):
    try:
        return function(*args)
    except (OSError, IndexError, ValueError, TypeError):
        return False


def kill(who, again=0):
    """SIGKILL, `again` times more, each when those who take over are there."""
    def act(move):
        for _ in range(again + 1):
            wait_for(lambda: move.lazy_complete() or not move.is_feeding(), "the lazy host to be complete", 10, 0.02)
            move.expect_feeding()
            victims = wait_for(lambda: getattr(move, who)(), f"the {who}", 10, 0.02)
            kill_all(victims[:1])
            wait_for(lambda: not quietly(lambda p: (stat_fields(p) or "Z")[0] != "Z", victims[0]), "it to die", 5, 0.01)
    return act


def kill_sender(move):
    move.expect_feeding()
    move.sender.kill()


def cut(times):
    """Each time the feed is cut that goes on after the one before."""
    def act(move):
        told = lambda word: read(move.log).count(word)
        for _ in range(times):
            cuts, fed = told('"event":"cut"'), told('"phase":"feed"')
            wait_for(lambda f=fed: told('"phase":"feed"') > f, "the feed to go on", 40)
            move.expect_feeding()
            move.hosts.network.cut("source")
            wait_for(lambda c=cuts: told('"event":"cut"') > c, "the cut to be noticed", 40)
            move.hosts.network.cut("source", up=True)
        wait_for(lambda: '"event":"joined"' in read(move.log), "send to say that it is connected again", 40)
    return act


def end_receiver(move):
    """Nobody listens there any more."""
    move.expect_feeding()
    victims = [*move.destination_agent(), move.hosts.receivers["destination"].pid]
    kill_all(victims)
    move.hosts.receivers.pop("destination").wait(10)


def kill_receiver(move):
    end_receiver(move)
    move.start_receiver()

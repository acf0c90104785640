#!/usr/bin/env python3
"""Chains of image folders: pre-dump, pre-dump, dump, restore, of programs that write all the time; in local folders and
through a page server on another host. Debian's crit decodes every image.

    chains.py [--build DIR] [--only REGEX] [--list]"""
import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from lib import crit, netns, suite, tool  # noqa: E402
from lib.process import all_pids, exists, kill_all, read, run, spawn, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402

HOSTS = {"source": "10.77.9.1/24", "destination": "10.77.9.2/24"}
IN_PARENT, LAZY, PRESENT = 1, 2, 4
SMALL = {"memory": ["48"]}  # MiB; as much as a chain of three needs
PROGRAMS = ("memory", "sequence", "mm", "tree", "threads", "python")


class Chain:
    """A started program and its folders 1, 2, ...; `prefix` runs it and the commands on some host."""

    def __init__(self, context, folder, name, prefix=()):
        crit.command()
        self.binary, self.folder, self.prefix = context.binary, folder, list(prefix)
        self.tool = tool.Tool(context.binary, folder)
        if name in SMALL:
            cases.WORKLOADS[name] = (name, SMALL[name])
        self.program = cases.start(context, name, os.path.join(folder, "program"), self.prefix)
        try:
            self.program.ready()
            self.program.check()
        except BaseException:
            self.end()
            raise

    def path(self, number):
        return os.path.join(self.folder, f"images-{number}")

    def command(self, verb, number, *options, expect_code=0):
        """Runs a verb on folder `number`, with folder `number` - 1 as the previous one if that exists."""
        os.makedirs(self.path(number), exist_ok=True)
        previous = ["--prev-images-dir", f"../images-{number - 1}"] if os.path.isdir(self.path(number - 1)) else []
        code, out = run([self.binary, verb, "-t", self.program.pid, "-D", self.path(number), "-v4", "-o", f"{verb}.log", *previous,
                         *(() if verb == "untrack" else ("--track-mem",)), *options], prefix=self.prefix,
                        log=os.path.join(self.folder, "commands.log"))
        log = os.path.join(self.path(number), f"{verb}.log")
        expect(code == expect_code, f"{verb} {number} exited {code}: {out.strip()[-400:]}\n{tool.tail(log)}")
        return out + read(log)

    def pre_dump(self, number, *options, **kw):
        out = self.command("pre-dump", number, *options, **kw)
        self.program.check()
        return out

    def dump(self, number, *options, **kw):
        self.program.settle()
        out = self.command("dump", number, *options, **kw)
        if kw.get("expect_code", 0) == 0 and "-R" not in options:
            self.program.reap_old()
            wait_for(lambda: not exists(self.program.pid), "the dumped tree to be gone", 10)
        return out

    def restore(self, folder):
        pid = self.tool.restore(folder)
        expect(pid == self.program.pid, f"pid {self.program.pid} came back as {pid}")
        self.program.moved_to(pid, None)
        self.program.check()

    def keepers(self):
        return [p for p in all_pids() if "track-keeper" in (words := read(f"/proc/{p}/cmdline").split("\0"))
                and str(self.program.pid) in words and exists(p)]

    def expect_no_keeper(self):
        wait_for(lambda: not self.keepers(), "the keeper to end", 10)
        wait_for(lambda: not os.path.exists("/run/migrate"), "its folder to go", 5)

    def end(self):
        self.program.end()
        if self.program.pid:
            kill_all(self.keepers())


@contextlib.contextmanager
def chain_of(context, folder, name, prefix=()):
    chain = Chain(context, folder, name, prefix)
    try:
        yield chain
    finally:
        chain.end()


@contextlib.contextmanager
def on_two_hosts(context, folder, name):
    """A network, a chain of a program on its source, and a list for the servers that shall end with them."""
    with contextlib.closing(netns.Network(f"chn{os.getpid()}", HOSTS)) as network:
        with chain_of(context, folder, name, network.enter("source")) as chain:
            servers = []
            try:
                yield network, chain, servers
            finally:
                for server in servers:
                    server.end()


def pagemaps(folder):
    """{image: [(flags, pages), ...]} as crit decodes them."""
    names = [name for name in os.listdir(folder) if name.startswith("pagemap-")]
    return {name: [(flags_of(e), int(e["nr_pages"])) for e in entries[1:]] for name, entries in crit.entries(folder, names).items()}


def flags_of(entry):
    """crit writes flags as names."""
    value = entry.get("flags", 0)
    if isinstance(value, str):
        names = {"PE_PARENT": IN_PARENT, "PE_LAZY": LAZY, "PE_PRESENT": PRESENT}
        return sum(names[n.strip()] if n.strip() in names else int(n, 0) for n in value.split("|"))
    return value


def count(folder, flag):
    return sum(pages for entries in pagemaps(folder).values() for flags, pages in entries if flags & flag)


def shown(folder):
    """crit decodes every image that it knows, and `crit show` one of each kind."""
    names = [n for n in os.listdir(folder) if (n.endswith(".img") and not n.startswith("pages-")) or n == "stats-dump"]
    known = [name for name, entries in crit.entries(folder, names).items() if entries is not None]
    expect("inventory.img" in known and any(n.startswith("pagemap-") for n in known), f"there are only {known}")
    for file in {re.sub(r"\d+", "", name): name for name in known}.values():
        expect('"magic"' in crit.show(folder, file), f"crit show {file} gives no JSON")


def local(name):
    def case(context, folder):
        with chain_of(context, folder, name) as chain:
            chain.pre_dump(1)
            expect(len(chain.keepers()) == 1, "no keeper was left by the first pre-dump")
            chain.pre_dump(2)
            log = chain.dump(3)
            expect("all memory is stored" not in log, f"the dump took everything: {log[-300:]}")
            chain.expect_no_keeper()
            for number in (1, 2, 3):
                shown(chain.path(number))
            for number in (2, 3):
                expect(os.readlink(chain.path(number) + "/parent") == f"../images-{number - 1}", f"folder {number} has another parent")
                stats = crit.entries(chain.path(number), ["stats-dump"])["stats-dump"][0]["dump"]
                expect(int(stats["pages_skipped_parent"]) == count(chain.path(number), IN_PARENT), "stats-dump counts otherwise")
                expect(int(stats["pages_written"]) == count(chain.path(number), PRESENT), "stats-dump counts otherwise")
            expect(not os.path.lexists(chain.path(1) + "/parent"), "the first folder has a parent")
            expect(count(chain.path(1), IN_PARENT) == 0, "the first folder refers to a parent")
            if name == "memory":
                written = [count(chain.path(n), PRESENT) for n in (1, 2, 3)]
                expect(max(written[1:]) < written[0] / 2, f"pages written: {written}, so nothing was left out")
            chain.restore(chain.path(3))
            chain.program.check()
    return case


class Server:
    """`migrate page-server` on the destination for folder `number`."""

    def __init__(self, context, chain, network, number, *options, host="destination", previous=True):
        self.port, self.number = 7500 + number, number
        self.folder = os.path.join(chain.folder, f"remote-{number}")
        os.makedirs(self.folder)
        before = [f"--prev-images-dir=../remote-{number - 1}"] if previous and number > 1 else []
        self.log = os.path.join(self.folder, "server.log")
        self.process = spawn([context.binary, "page-server", "-D", self.folder, "--port", self.port, *before, "-v4", *options],
                             log=self.log, prefix=network.enter(host) if network else ())
        needle = f":{self.port:04X} "

        def listening():
            expect(self.process.poll() is None, f"page-server ended: {read(self.log)[-400:]}")
            return any(needle in line and " 0A " in line for line in read(f"/proc/{self.process.pid}/net/tcp").splitlines()[1:])
        wait_for(listening, "the page server to listen", 15)

    def finished(self):
        return wait_for(lambda: self.process.poll() is not None, "the page server to end", 15) and self.process.returncode

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def across(name, secure):
    """Pages go to another host's folder, the other images stay; together they are restored."""
    def case(context, folder):
        with on_two_hosts(context, folder, name) as (network, chain, servers):
            sides = {host: ["--insecure"] for host in HOSTS}
            if secure:
                keys = tool.Keys(context.binary, os.path.join(folder, "keys"), [network.address(h) for h in HOSTS])
                for host in HOSTS:
                    names = iter(keys.options(network.address(host)))
                    sides[host] = ["--tls", *(word.replace("--", "--tls-") if word.startswith("--") else word for word in names)]
            for number, verb in ((1, chain.pre_dump), (2, chain.pre_dump), (3, chain.dump)):
                server = Server(context, chain, network, number, *sides["destination"], "--address", network.address("destination"))
                servers.append(server)
                verb(number, "--page-server", "--address", network.address("destination"), "--port", server.port, *sides["source"])
                code = server.finished()
                expect(code == 0, f"page server {number} exited {code}: {read(server.log)[-400:]}")
                expect(not [f for f in os.listdir(chain.path(number)) if f.startswith("page")], "pages stayed here")
                for file in os.listdir(chain.path(number)):
                    if file.endswith(".img") or file == "stats-dump":
                        shutil.copy(os.path.join(chain.path(number), file), server.folder)
                shown(server.folder)
            chain.expect_no_keeper()
            expect(count(servers[1].folder, IN_PARENT) + count(servers[2].folder, IN_PARENT) > 0, "nothing was left in the parents")
            chain.restore(servers[2].folder)
    return case


def wrong_previous(context, folder):
    """A folder that the tracker knows nothing of: all is stored, with a warning, and it restores alone."""
    with chain_of(context, folder, "memory") as chain:
        chain.pre_dump(1)
        shutil.copytree(chain.path(1), chain.path(4))
        chain.pre_dump(2)
        log = chain.dump(5)  # after 4, a copy of 1
        expect("all memory is stored" in log, f"no warning: {log[-300:]}")
        expect(count(chain.path(5), IN_PARENT) == 0 and not os.path.lexists(chain.path(5) + "/parent"), "it needs a parent")
        shutil.rmtree(chain.path(4))
        chain.restore(chain.path(5))
        chain.expect_no_keeper()


def moved_folder(context, folder):
    """A folder is known by what is in it, not by its name."""
    with chain_of(context, folder, "memory") as chain:
        chain.pre_dump(1)
        os.rename(chain.path(1), chain.path(7))
        log = chain.dump(8)
        expect("all memory is stored" not in log, f"the folder was not known: {log[-300:]}")
        expect(count(chain.path(8), IN_PARENT) > 0, "nothing was left in the parent")
        chain.restore(chain.path(8))


def keeper_killed(context, folder):
    """Whoever tracked is dead: the next pre-dump begins anew, a dump stores everything."""
    with chain_of(context, folder, "memory") as chain:
        chain.pre_dump(1)
        for number in (2, 3):
            for pid in chain.keepers():
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not chain.keepers(), "the keeper to die", 5)
            log = chain.pre_dump(2) if number == 2 else chain.dump(3)
            expect("all memory is stored" in log, f"no warning: {log[-300:]}")
            expect(count(chain.path(number), IN_PARENT) == 0, "pages are left to a folder that nobody tracked")
        chain.restore(chain.path(3))
        run(["rm", "-rf", "/run/migrate"])  # a socket without an owner, as a kill leaves it


def untracked(context, folder):
    """`untrack`, the end of the program, and time end the tracking."""
    with chain_of(context, folder, "memory") as chain:
        chain.pre_dump(1)
        expect(" uw" in read(f"/proc/{chain.program.pid}/smaps"), "nothing is write-protected by the tracker")
        chain.command("untrack", 1)
        chain.expect_no_keeper()
        expect(" uw" not in read(f"/proc/{chain.program.pid}/smaps"), "the tracker left its write protection behind")
        chain.program.check()
        chain.command("untrack", 1)  # twice is no error
        chain.pre_dump(2, "--track-timeout", "1")
        chain.expect_no_keeper()
        chain.pre_dump(3)
        chain.program.end()
        chain.expect_no_keeper()


def left_running(context, folder):
    """dump -R ends the tracking, and the program runs on unprotected."""
    with chain_of(context, folder, "memory") as chain:
        chain.pre_dump(1)
        chain.dump(2, "-R")
        chain.expect_no_keeper()
        expect(" uw" not in read(f"/proc/{chain.program.pid}/smaps"), "the tracker left its write protection behind")
        chain.program.check()
        expect(count(chain.path(2), IN_PARENT) > 0, "nothing was left in the parent")


def refusals(context, folder):
    """What cannot work is refused, and the program runs on."""
    with on_two_hosts(context, folder, "memory") as (network, chain, servers):
        address = network.address("destination")
        code, out = run([context.binary, "page-server", "-D", folder, "--port", "7499", "--address", address],
                        prefix=network.enter("destination"))
        expect(code == 2 and "plain text" in out, f"a page server in plain text: exit {code}, {out}")
        code, out = run([context.binary, "page-server", "-D", folder, "--port", "7499", "--auto-dedup"])
        expect(code == 2 and "--auto-dedup" in out, f"--auto-dedup: exit {code}, {out}")

        server = Server(context, chain, network, 1, "--insecure", "--address", address)
        servers.append(server)
        to = ["--page-server", "--address", address, "--port", server.port]
        out = chain.pre_dump(1, *to, expect_code=2)
        expect("plain text" in out, f"no word of plain text: {out[-300:]}")
        expect("--prev-images-dir" in chain.pre_dump(1, "--prev-images-dir", "../none", expect_code=2), "a previous folder that is none")
        server.end()

        # A server without the previous folder cannot take what is left out.
        chain.pre_dump(1)
        server = Server(context, chain, network, 2, "--insecure", "--address", address, previous=False)
        servers.append(server)
        out = chain.dump(2, "--page-server", "--address", address, "--port", server.port, "--insecure", expect_code=2)
        expect("no parent" in out, f"no word of the parent: {out[-300:]}")
        expect(server.finished() == 1, "the page server took half a dump for a whole one")
        code, out = run([context.binary, "restore", "-D", server.folder, "-d"])
        expect(code != 0, "half a dump was restored")
        chain.program.check()


def any_port(context, folder):
    """With port 0 a page server says which one it got."""
    log = os.path.join(folder, "server.log")
    process = spawn([context.binary, "page-server", "-D", folder, "--address", "127.0.0.1", "--port", "0"], log=log)
    try:
        said = wait_for(lambda: re.search(r"^page-server: listening on 127\.0\.0\.1:([1-9]\d*)$", read(log), re.M), "the page server to listen", 15)
        socket.create_connection(("127.0.0.1", int(said[1])), 10).close()
    finally:
        process.kill()
        process.wait()


def other_user(context, folder):
    """Without TLS pages come from processes of root and of the server's user only."""
    log = os.path.join(folder, "server.log")
    process = spawn([context.binary, "page-server", "-D", folder, "--address", "127.0.0.1", "--port", "0"], log=log)
    try:
        port = int(wait_for(lambda: re.search(r":([1-9]\d*)$", read(log), re.M), "the page server to listen", 15)[1])
        ask = ("import os, socket, struct, sys; os.setuid(65534); s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10); "
               "s.sendall(struct.pack('<IIQQQ', 4, 0, 0, 0, 42 << 8 | 1)); s.settimeout(10); print(len(s.recv(1)))")
        code, out = run([sys.executable, "-c", ask, port])
        expect(code != 0 or out.strip() == "0", f"user 65534 was answered: {out}")
        wait_for(lambda: "is user 65534's" in read(log), "the refusal", 5)
        with socket.create_connection(("127.0.0.1", port), 10) as s:
            s.sendall(struct.pack("<IIQQQ", 4, 0, 0, 0, 42 << 8 | 1))
            expect(s.recv(1) == b"\0", "our own process was not answered")
    finally:
        process.kill()
        process.wait()


def server_gone(context, folder):
    """The page server dies in the middle of a dump: the program runs on, and so does the chain."""
    with on_two_hosts(context, folder, "memory") as (network, chain, servers):
        address = network.address("destination")
        server = Server(context, chain, network, 1, "--insecure", "--address", address)
        servers.append(server)
        server.process.send_signal(signal.SIGSTOP)
        p = spawn([context.binary, "pre-dump", "-t", chain.program.pid, "-D", folder, "--page-server", "--address", address,
                   "--port", server.port, "--insecure"], log=os.path.join(folder, "cut.log"), prefix=network.enter("source"))
        wait_for(lambda: chain.keepers() or p.poll() is not None, "the keeper", 10)
        server.process.kill()
        server.process.wait()
        code = wait_for(lambda: p.poll() is not None and (p.returncode,), "the pre-dump to fail", 40)[0]
        expect(code == 1, f"pre-dump exited {code}: {read(folder + '/cut.log')[-300:]}")
        chain.program.check()
        chain.expect_no_keeper()


def main():
    options = suite.arguments(__doc__)
    named = {f"local/{n}": local(n) for n in PROGRAMS}
    named |= {"page-server/memory": across("memory", False), "page-server/memory-tls": across("memory", True),
              "page-server/sequence-tls": across("sequence", True), "page-server/gone": server_gone,
              "page-server/refusals": refusals, "page-server/any-port": any_port, "page-server/users": other_user, "previous/wrong": wrong_previous, "previous/moved": moved_folder,
              "keeper/killed": keeper_killed, "keeper/ends": untracked, "keeper/left-running": left_running}
    return suite.main(options, named, "mchains-")


if __name__ == "__main__":
    sys.exit(main())

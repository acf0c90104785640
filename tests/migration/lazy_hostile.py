"""Cases of lazy_verbs.py: clients and page servers that mean no good, and strangers."""
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys

import cases
from lazy_moves import (ADD_F, CLOSE, GET, OPEN2, PAGE, expect_as_before, expect_moved, free_port, freezer_of, moving, request, slowly,
                        started_there)
from lib import lazy, tool
from lib.process import read, run, wait_for
from lib.suite import expect


@contextlib.contextmanager
def silent_strangers(port, number):
    """So many who connect and say nothing."""
    with contextlib.ExitStack() as all_of_them:
        for _ in range(number):
            all_of_them.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        yield


def liar(context, folder):
    """A page server whose answers are wrong is cut, and asked again; who waits, waits."""
    said = []

    def lie(data):
        # One on each connection.
        if relay.to_client < 4 << 20 or len(said) == 3 or relay.connections <= len(said):
            return data
        at = data.find(struct.pack("<I", ADD_F | 4 << 16))
        if at < 0 or at + 32 > len(data):
            return data
        pages, address, task = struct.unpack_from("<QQQ", data, at + 8)
        if pages > 16 or address % PAGE or task != move.pid:
            return data
        said.append(at)
        wrong = (struct.pack("<QQ", pages, address + PAGE), struct.pack("<QQ", pages + 1, address), struct.pack("<QQ", 0, address))
        return data[:at + 8] + wrong[len(said) - 1] + data[at + 24:]

    with moving(context, folder) as (program, move), slowly(move, 60 << 20, lie) as relay:
        started_there(program, move, relay)
        wait_for(lambda: len(said) == 3 or move.daemon.poll() is not None, "three lies", 30)
        relay.rate = 0
        expect_moved(program, move)
        log = read(move.daemon_log)
        for words in ("not asked for", "more pages than", "no such pages"):
            expect(words in log, f"the daemon does not say {words!r}: {log[-1500:]}")


def strangers(context, folder):
    """Clients that ask for what was not announced get a sentence in the log and no page; they claim nothing."""
    with moving(context, folder, "tree") as (program, move):
        move.dump()
        task = program.inner
        code = next(line for line in read(f"/proc/{program.pid}/maps").splitlines() if " r-xp " in line)
        text = int(code.split("-")[0], 16)
        for sent, words in ((request(GET, 1, text, task), "were not announced"), (request(GET, 1, 0x1000, task), "were not announced"),
                            (request(GET, 1 << 34, 0x1000, task), "were not announced"), (request(GET, 0, text, task), "were not announced"),
                            (request(GET, 1 << 60, 0x1000, task), "out of range"), (request(GET, 1, text + 1, task), "out of range"),
                            (request(GET, 1, text, 4_000_001), "of which none were announced"), (request(GET, 1, text, 0), "out of range"),
                            (request(OPEN2, 0, 0, task << 8 | 1), "takes none"), (request(99), "unknown kind"),
                            (b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n", "unknown kind"), (request(CLOSE), "before it has asked"),
                            (b"abc", "middle of a message"), (b"", "hung up")):
            seen = read(move.dump_log).count("the connection with")
            with socket.create_connection(("127.0.0.1", move.port), 10) as s:
                s.sendall(sent)
                with contextlib.suppress(OSError):  # it may have been cut already
                    s.shutdown(socket.SHUT_WR)
                try:
                    expect(s.recv(PAGE) == b"", f"{sent!r} was answered")
                except ConnectionResetError:
                    pass
            wait_for(lambda: read(move.dump_log).count("the connection with") > seen, f"a sentence about {sent!r}", 10)
            line = [line for line in read(move.dump_log).splitlines() if "the connection with" in line][-1]
            expect(words in line, f"{sent!r}: {line}")
            expect(not freezer_of(program.pid), f"{sent!r} has claimed the tree")
        # Whoever says nothing is passed over.
        with silent_strangers(move.port, 3):
            move.copy()
            move.lazy_pages()
            program.moved_to(move.expect_restored(), None)
            expect_moved(program, move)


def strangers_to_tls(context, folder):
    """Who does not get through its handshake holds up nobody."""
    ours, others = (tool.Keys(context.binary, os.path.join(folder, n), ["127.0.0.1"]) for n in ("keys", "other"))
    options = lazy.tls_options(ours, "127.0.0.1")
    with moving(context, folder, "tree", source_options=options, destination_options=options) as (program, move):
        move.dump()
        move.copy()
        with silent_strangers(move.port, 40):
            with socket.create_connection(("127.0.0.1", move.port), 10) as s:
                s.sendall(request(GET, 1, 0x10000, program.inner))
                while s.recv(PAGE):
                    pass
            move.destination_options = lazy.tls_options(others, "127.0.0.1")
            code, out = run([context.binary, "lazy-pages", "-D", move.there, "--page-server", "--address", "127.0.0.1", "--port", move.port,
                             *move.destination_options])
            expect(code == 2, f"a server of another CA was taken: exit {code}, {out}")
            expect(not freezer_of(program.pid), "a stranger has claimed the tree")
            move.destination_options = options
            move.lazy_pages()
            program.moved_to(move.expect_restored(), None)
            expect_moved(program, move)


def other_user(context, folder):
    """Without TLS memory goes to processes of root and our own user only, and comes from such only."""
    ask = ("import os, socket, sys; os.setuid(65534); s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10); "
           "s.sendall(bytes.fromhex(sys.argv[2])); s.settimeout(10); print(len(s.recv(10)))")
    fake = ("import os, socket, sys; os.setuid(65534); l = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print('up', flush=True)\n"
            "while True:\n  s, _ = l.accept()\n  while s.recv(32): s.sendall(bytes(4))\n")
    with moving(context, folder) as (program, move):
        before = cases.facts(program)
        move.dump()
        move.copy()
        heap = next(line for line in read(f"/proc/{program.pid}/maps").splitlines() if "[heap]" in line)
        wanted = request(GET, 1, int(heap.split("-")[0], 16), program.inner)
        code, out = run([sys.executable, "-c", ask, move.port, wanted.hex()])
        expect(code != 0 or out.strip() == "0", f"a page went to user 65534: {out}")
        wait_for(lambda: "is user 65534's" in read(move.dump_log), "the refusal", 5)
        port = free_port()
        server = subprocess.Popen([sys.executable, "-c", fake, str(port)], stdout=subprocess.PIPE)
        try:
            server.stdout.readline()
            code, out = run([context.binary, "lazy-pages", "-D", move.there, "--page-server", "--address", "127.0.0.1", "--port", port])
            expect(code == 2 and "is user 65534's" in out, f"pages would be taken from user 65534: exit {code}, {out}")
        finally:
            server.kill()
            server.wait()
        move.dumper.send_signal(signal.SIGINT)
        move.ended("dumper", 20)
        expect_as_before(program, before)


CASES = {"hostile/server": liar, "hostile/clients": strangers, "hostile/users": other_user, "hostile/tls": strangers_to_tls}

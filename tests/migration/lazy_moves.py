"""What the cases of lazy_verbs.py have in common: a program, its migration, and what must be true of them."""
import contextlib
import os
import socket
import struct

import cases
from lib import lazy, programs
from lib.process import read
from lib.relay import Relay
from lib.suite import expect

PAGE = 4096
MIB = 96  # of memory, which comes slowly where something shall happen meanwhile
GET, ADD_F, CLOSE, OPEN2 = 7, 6, 0x1023, 4


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def request(command, pages=0, address=0, task=0, flags=0):
    return struct.pack("<IIQQQ", command | flags << 16, 0, pages, address, task)


@contextlib.contextmanager
def moving(context, folder, name="memory", mib=MIB, **options):
    """A program (or the name of one) and its migration, of which nothing has happened yet."""
    place = os.path.join(folder, "program")
    if name == "memory":
        program = programs.Workload(name, os.path.join(context.workloads, name), [mib], place)
    else:
        program = cases.start(context, name, place) if isinstance(name, str) else name(place)
    move = None
    try:
        program.ready()
        program.check()
        program.remember()
        move = lazy.Move(context.binary, os.path.join(folder, "move"), program.pid, program.inner, program.comm(), port=free_port(), **options)
        yield program, move
    finally:
        if move is not None:
            move.close()
        program.end()


@contextlib.contextmanager
def slowly(move, rate=20 << 20, lie=None):
    """The pages come through a relay."""
    with contextlib.closing(Relay(move.port, rate, lie)) as relay:
        yield relay


def started_there(program, move, relay=None, daemon=()):
    """From the dump until the tree runs at its destination."""
    move.dump()
    move.copy()
    move.lazy_pages(*daemon, port=relay.port if relay else None)
    program.moved_to(move.expect_restored(), None)


def freezer_of(pid):
    """The cgroups of ours that a task is in."""
    return [line for line in read(f"/proc/{pid}/cgroup").splitlines() if "migrate-dump" in line]


def expect_frozen(pid):
    expect(freezer_of(pid), f"the source is not held: {read(f'/proc/{pid}/cgroup')}")


def expect_as_before(program, before):
    program.alive_or_raise()
    expect(not freezer_of(program.pid), "it was left in our cgroup")
    program.check()
    cases.compare(program, before, "after the dump that was given up")


def expect_moved(program, move):
    program.check()
    move.expect_done()
    program.reap_old(move.namespace.pid)
    program.check()


def executable(path, text):
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, 0o755)

#!/usr/bin/env python3
"""--tcp-close: both sides of a connection see a reset, when it is certain that the program has moved and not before.

    tcp_close.py [--build DIR] [--only REGEX] [--list]"""
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lib import netns, programs, suite, tool  # noqa: E402
from lib.process import exists, find_moved, kill_tree, read, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402

# Says its port, sends back what comes, and says how the connection ends.
PEER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
try:
    while data := connection.recv(4096):
        connection.sendall(data)
    print("end", flush=True)
except ConnectionResetError:
    print("reset", flush=True)
"""


class Connected:
    """The program, and its peer outside of the tree."""

    def __init__(self, context, folder, prefix=(), ns=None):
        self.said = os.path.join(folder, "peer")
        with open(self.said, "w") as out:
            self.peer = subprocess.Popen([*prefix, "/usr/bin/python3", "-c", PEER], stdout=out)
        port = wait_for(lambda: read(self.said).strip(), "the peer to listen", 10)
        self.program = programs.Workload("connected", os.path.join(context.workloads, "connected"), [port],
                                         os.path.join(folder, "program"), prefix, ns)

    def __enter__(self):
        self.program.ready()
        self.program.check()
        return self

    def __exit__(self, *_):
        self.program.end()
        self.peer.kill()
        self.peer.wait()

    def end(self):
        """What the peer says of it; "" as long as it goes on."""
        return " ".join(read(self.said).split()[1:])

    def expect_reset(self):
        wait_for(self.end, "the peer to see an end", 10)
        expect(self.end() == "reset", f"the peer sees: {self.end()}")
        with open(os.path.join(self.program.folder, "moved"), "w"):
            pass

    def expect_connected(self):
        self.program.alive_or_raise()
        self.program.check()
        expect(self.end() == "", f"the peer sees: {self.end()}")


def in_place(context, folder):
    t = tool.Tool(context.binary, folder)
    images = os.path.join(folder, "images")
    with Connected(context, folder) as c:
        t.dump(c.program.pid, images, "-R", "--tcp-close")
        c.expect_connected()
        t.dump(c.program.pid, images, "--tcp-close")
        c.program.reap_old()
        wait_for(lambda: not exists(c.program.pid), "the dumped tree to be gone", 10)
        c.expect_reset()
        c.program.moved_to(t.restore(images, "--tcp-close"), None)
        c.program.check()


def failed(context, folder):
    """A dump without room for its images."""
    t = tool.Tool(context.binary, folder)
    images = os.path.join(folder, "images")
    os.mkdir(images)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", images], check=True)
    try:
        with Connected(context, folder) as c:
            try:
                t.dump(c.program.pid, images, "--tcp-close")
            except tool.Failed:
                c.expect_connected()
            else:
                raise programs.Unwell("the dump did not fail")
    finally:
        subprocess.run(["umount", images], check=True)


def sent(mode):
    def case(context, folder):
        short = f"c{os.getpid()}"
        receiver = None
        network = netns.Network(short, {"source": "10.78.1.1/24", "destination": "10.78.1.2/24"})
        try:
            t = tool.Tool(context.binary, folder)
            keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination"])
            with Connected(context, folder, network.enter("source"), f"{short}-source") as c:
                receiver = t.receive(network, "destination", keys)
                old, comm = c.program.pid, c.program.comm()
                code, _, out = t.send(network, "source", "destination", keys, old, options=["--tcp-close", "--mode", mode])
                expect(code == 0, f"send exited {code}: {out[-1500:]}")
                c.program.reap_old(receiver.pid)
                c.expect_reset()
                pid = wait_for(lambda: find_moved(c.program.inner, comm), "the tree at the destination", 10)
                c.program.moved_to(pid, f"{short}-destination")
                c.program.check()
        finally:
            if receiver is not None and receiver.poll() is None:
                kill_tree(receiver.pid)
                receiver.wait(timeout=5)
            network.close()
    return case


CASES = {"in-place": in_place, "failed": failed, "sent": sent("precopy"), "sent-postcopy": sent("postcopy")}


if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mtcp-"))

"""Network namespaces that stand for hosts, joined by a cable or by a bridge in one of their own. Nothing outside them is touched."""
import ctypes
import os
import subprocess
import threading

CLONE_NEWNET = 0x40000000


def ip(*args, ns=None, check=True):
    command = ["ip", *(["-n", ns] if ns else []), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result


def call_in(ns, function):
    """Runs `function` in a thread inside the network namespace `ns` (None: here) and gives its result."""
    if ns is None:
        return function()
    result = {}

    def body():
        try:
            fd = os.open(f"/run/netns/{ns}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            result["value"] = function()
        except BaseException as e:  # handed to the caller
            result["error"] = e

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if "error" in result:
        raise result["error"]
    return result["value"]


def allow_echoes():
    """Anybody may have ICMP sockets, as on hosts with systemd."""
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as f:
        f.write("0 2147483647")


class Network:
    """`hosts`: {name: address/prefix}. Namespaces are called PREFIX-NAME and go away with close(). `direct`: two hosts, and
    nothing between them that takes time; their cable cannot be cut. `mtu`: of that cable, bytes."""

    def __init__(self, prefix, hosts, direct=False, mtu=1500):
        self.prefix = prefix
        self.hosts = dict(hosts)
        self.direct, self.mtu = direct, str(mtu)
        self.created = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        spaces = {name: self._add(name) for name in self.hosts}
        if self.direct:
            one, other = spaces.values()
            ip("link", "add", "eth0", "mtu", self.mtu, "type", "veth", "peer", "name", "eth0", "mtu", self.mtu, "netns", other, ns=one)
        else:
            switch = self._add("switch")
            ip("link", "add", "br0", "type", "bridge", ns=switch)
            ip("link", "set", "br0", "up", ns=switch)
        for name, ns in spaces.items():
            address = self.hosts[name]
            if not self.direct:
                ip("link", "add", "eth0", "type", "veth", "peer", "name", f"to-{name}"[:15], "netns", switch, ns=ns)
                ip("link", "set", f"to-{name}"[:15], "master", "br0", "up", ns=switch)
            ip("addr", "add", address, "dev", "eth0", ns=ns)
            ip("link", "set", "eth0", "up", ns=ns)
            ip("link", "set", "lo", "up", ns=ns)

    def _add(self, name):
        full = f"{self.prefix}-{name}"
        ip("netns", "add", full)
        self.created.append(full)
        call_in(full, allow_echoes)
        return full

    def address(self, name):
        return self.hosts[name].split("/")[0]

    def namespace(self, name):
        """Its file."""
        return f"/run/netns/{self.prefix}-{name}"

    def enter(self, name):
        """Command prefix that runs something on that host. The mount namespace stays ours, so that mounts are seen."""
        return ["nsenter", f"--net={self.namespace(name)}"]

    def cut(self, name, up=False):
        """Pulls (or plugs) the cable of a host."""
        ip("link", "set", f"to-{name}"[:15], "up" if up else "down", ns=f"{self.prefix}-switch")
        if up:
            # Nobody waits until the kernel asks again for a neighbour that did not answer.
            for host in self.hosts:
                ip("neigh", "flush", "dev", "eth0", ns=f"{self.prefix}-{host}", check=False)

    def call(self, name, function):
        """Calls `function` in a thread that is on that host; sockets made there stay there."""
        return call_in(f"{self.prefix}-{name}", function)

    def close(self):
        for ns in reversed(self.created):
            ip("netns", "del", ns, check=False)
        self.created = []


# The source's clocks run ahead of the destination's, as on real hosts.
OTHER_CLOCKS = ["unshare", "-T", "--monotonic", "100000", "--boottime", "100000"]

"""Two hosts on one machine: network namespaces, made and removed here, with a pair of clocks, keys and a state folder each.
One pair lasts for a whole run, so that the estimates learn from move to move as they do for a user."""
import os
import shutil
import tempfile

from lib import netns, tool

LIKE_LOOPBACK = 65535  # of the link that raw TLS is measured on (which has 65536, more than this kind of cable can have)


class Hosts:
    """A context manager. `folder` holds logs, keys and journals, in memory; it goes away at the end."""

    def __init__(self, build, binary=None, reports=None, mtu=LIKE_LOOPBACK):
        """`binary`: the program to measure, if not that of `build`; `reports`: folder for the reports of all moves; `mtu`: of the
        cable between the hosts."""
        self.build, self.mtu = build, mtu
        self.reports = reports and os.path.abspath(reports)
        if reports:
            os.makedirs(self.reports, exist_ok=True)
        self.binary = binary or os.path.join(build, "migrate", "migrate")
        self.moves = 0

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="mbench-", dir="/dev/shm")
        self.network = None
        try:
            os.chmod(self.folder, 0o755)
            self.short = f"b{os.getpid()}"
            self.network = netns.Network(self.short, {"source": "10.77.2.1/24", "destination": "10.77.2.2/24"}, direct=True, mtu=self.mtu)
            self.tool = tool.Tool(self.binary, self.folder)
            self.keys = tool.Keys(self.binary, os.path.join(self.folder, "keys"), ["source", "destination"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.network is not None:
            self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_folder(self, name):
        """For one move or one program."""
        self.moves += 1
        path = os.path.join(self.folder, f"{self.moves}-{name}")
        os.makedirs(path)
        os.chmod(path, 0o755)
        return path

    def report_options(self):
        """For the move whose folder was made last."""
        return ["--report", os.path.join(self.reports, f"{self.moves}.html")] if self.reports else []

    def on_source(self):
        """Command prefix: on the source, whose clocks are ahead of the destination's as on real hosts."""
        return [*self.network.enter("source"), *netns.OTHER_CLOCKS]

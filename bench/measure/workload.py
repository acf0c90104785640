"""The program that is moved (../writer.cpp), and what it noted about itself."""
import bisect
import os
import struct
from dataclasses import dataclass

from lib import programs
from lib.process import wait_for

PAGE = 4096
NS = 1_000_000_000


@dataclass(frozen=True)
class Task:
    """What the program has and does. `rate`: pages a second; None: as many as it can."""
    mib: int
    rate: int | None = 0
    sequential: bool = False
    whole: bool = False  # writes whole pages, not two words of each

    def arguments(self):
        return [str(self.mib), str(-1 if self.rate is None else self.rate), str(int(self.sequential)), str(int(self.whole))]

    def rate_name(self):
        name = "full speed" if self.rate is None else f"{self.rate}"
        return name + (" in a row" if self.sequential else "")


@dataclass(frozen=True)
class Sample:
    """Times in seconds of CLOCK_REALTIME. `gap`: the longest time since the last sample in which the program did nothing."""
    now: float
    written: int
    gap: float
    gap_end: float


class Writer(programs.Workload):
    """The program, started."""

    def __init__(self, build, task, folder, prefix=(), ns=None):
        self.task = task
        super().__init__("writer", os.path.join(build, "bench", "writer"), task.arguments(), folder, prefix, ns)

    def samples(self):
        with open(os.path.join(self.folder, "samples"), "rb") as f:
            data = f.read()
        size = struct.calcsize("4q")
        return [Sample(now / NS, written, gap / NS, end / NS)
                for now, written, gap, end in struct.iter_unpack("4q", data[:len(data) // size * size])]

    def run_on(self, seconds):
        """Waits until it has run that much longer, by its own samples."""
        last = self.samples()
        until = (last[-1].now if last else 0) + seconds
        if not last:
            wait_for(self.samples, "the first sample of the program", 20)
            until = self.samples()[-1].now + seconds
        wait_for(lambda: self.samples()[-1].now >= until, "the program to run on", seconds + 30, 0.05)


def rate_between(samples, begin, end):
    """Pages written a second in that time; None if it was too short to tell."""
    times = [s.now for s in samples]
    first, last = bisect.bisect_left(times, begin), bisect.bisect_right(times, end) - 1
    if last <= first or times[last] - times[first] < 0.03:
        return None
    return (samples[last].written - samples[first].written) / (times[last] - times[first])


def stalls(samples, begin, end, least):
    """The times in which the program did nothing for longer than `least`, together; seconds."""
    return sum(s.gap for s in samples if begin <= s.gap_end <= end and s.gap > least)


def longest_gap(samples, begin, end):
    """The longest time in which the program did nothing, among those that ended between `begin` and `end`; seconds."""
    return max((s.gap for s in samples if begin <= s.gap_end <= end), default=0.0)

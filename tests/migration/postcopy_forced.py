"""The operator lets the frozen copy run while the other one does, out of reach and with pages missing: two run, and that is said on
both sides, until one of them has ended."""
import os
import re
import signal

from lib.process import exists, kill_all, wait_for
from lib.suite import expect
from postcopy_move import Move, end_receiver


class TwoRun(Move):
    """Forced while its receiver was gone, which is there again."""

    def begin(self, via=None):
        super().begin(via)
        end_receiver(self)
        self.sender.send_signal(signal.SIGINT)
        self.send_ends(3)
        kill_all(self.named("guardian-watch source ", self.session))
        code, out = self.resolve("source", "--force-run", self.session)
        expect(code == 0 and "runs on here, on the operator's word" in out, f"--force-run exited {code}: {out[-500:]}")
        self.program.check()
        self.start_receiver()

    def resolve(self, host, *options):
        other = "destination" if host == "source" else "source"
        return self.hosts.tool.resolve(self.hosts.network, host, other, self.hosts.keys, *options,
                                       pid=self.old if host == "source" and exists(self.old) else None)

    def expect_told(self):
        for _ in range(2):
            code, out = self.resolve("source")
            expect(code == 3 and "runs here and at the destination" in out and f"`kill {self.old}`" in out,
                   f"resolve at the source exited {code}: {out[-500:]}")
            code, out = self.resolve("destination")
            expect(code == 3 and re.search(r"runs here and at the source: .* [1-9]\d* pages of this one are there and will not come", out),
                   f"resolve at the destination exited {code}: {out[-500:]}")

    def expect_settled(self, *states):
        wait_for(lambda: not self.lazy(), "the lazy host to leave", 10)
        for host in ("source", "destination"):
            code, out = self.resolve(host)
            expect(code == 0 and "could not be told" not in out, f"resolve at the {host} exited {code}: {out[-500:]}")
        now = (self.state("source"), self.state("destination"))
        expect(now == states, f"source and destination say {now}")


def ends_there(context, folder):
    """That copy is killed, by who holds it; the other runs on whole."""
    move = TwoRun(context, folder, "postcopy")
    try:
        move.expect_told()
        code, out = move.resolve("source", "--force-kill", move.session)
        expect(code == 3 and f"kill {move.old}" in out and exists(move.old), f"--force-kill of what runs exited {code}: {out[-500:]}")
        code, out = move.resolve("destination", "--force-kill", move.session)
        expect(code == 0 and "killed here" in out, f"--force-kill exited {code}: {out[-500:]}")
        expect(not exists(move.copy), "the copy was not killed")
        move.expect_settled("ABORTED", "DONE")
        move.program.check()
    finally:
        move.close()


def ends_here(context, folder):
    """With this copy the other's pages are gone: it is told, and waits for them no more."""
    move = TwoRun(context, folder, "postcopy")
    try:
        move.expect_told()
        os.kill(move.old, signal.SIGKILL)
        wait_for(lambda: not exists(move.old) or move.program.process.poll() is not None, "the program to end", 10)
        code, out = move.resolve("source")
        expect(code == 0, f"resolve at the source exited {code}: {out[-500:]}")
        move.expect_settled("ABORTED", "LOST")
    finally:
        move.close()


CASES = {"forced/ends-there": ends_there, "forced/ends-here": ends_here}

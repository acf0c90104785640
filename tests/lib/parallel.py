"""Cases in processes of their own, several at a time; whatever happens, also SIGTERM and Ctrl-C, they end and clean up."""
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time

from .process import all_pids, become_subreaper, descendants, kill_all, kill_tree, own_session_keyring, stat_fields, wait_for

FORK = multiprocessing.get_context("fork")
CLEAN_UP = 30  # seconds that a case has for that


class TimeUp(Exception):
    """The case took too long."""


def interruptible():
    """SIGTERM and SIGINT raise KeyboardInterrupt, once: what cleans up then is not interrupted again."""
    def raise_it(*_):
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, signal.SIG_IGN)
        raise KeyboardInterrupt
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, raise_it)


def in_case(body, job, limit, give):
    """In the case's process."""
    def on_alarm(*_):
        raise TimeUp(f"the case took more than {limit} s")
    os.setsid()
    become_subreaper()
    own_session_keyring()
    interruptible()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(limit)
    try:
        give.send(body(job))
    except KeyboardInterrupt:
        pass
    finally:
        signal.alarm(0)
        kill_all([p for p in descendants(os.getpid()) if p != os.getpid()])


class Running:
    def __init__(self, body, job, limit):
        self.job = job
        self.receive, give = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=in_case, args=(body, job, limit, give))
        self.process.start()
        give.close()
        self.deadline = time.monotonic() + limit + CLEAN_UP

    def result(self):
        """None if it died or hung."""
        try:
            result = self.receive.recv() if self.receive.poll(0) else None
        except EOFError:
            result = None
        self.process.join(CLEAN_UP if result is not None else 1)
        self.end()
        return result

    def end(self):
        if self.process.is_alive():
            kill_tree(self.process.pid)
        self.process.join()
        self.receive.close()


def end_all(running):
    """They are asked first, so that they end what they started outside of the process tree, too."""
    for r in running:
        if r.process.is_alive():
            os.kill(r.process.pid, signal.SIGTERM)
    with contextlib.suppress(Exception):
        wait_for(lambda: not any(r.process.is_alive() for r in running), "the cases to clean up", CLEAN_UP, 0.05)
    for r in running:
        r.end()


def end_strays(running):
    """Orphans of ended cases come to us: our children that are no cases, and all below them."""
    cases, us = {r.process.pid for r in running}, str(os.getpid())
    orphans = [p for p in all_pids() if p not in cases and (f := stat_fields(p)) and f[1] == us]
    kill_all([q for p in orphans for q in descendants(p)])


def run(jobs, body, at_a_time, limit):
    """Calls body(job) for each job, each in a process of its own with `limit` seconds, `at_a_time` beside each other; yields
    (job, what body gave, or None if the process died or hung) as they end. Close it (contextlib.closing) when you stop early."""
    waiting, running = list(jobs), []
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                running.append(Running(body, waiting.pop(0), limit))
            ready = multiprocessing.connection.wait([r.receive for r in running], timeout=1)
            for r in [r for r in running if r.receive in ready or time.monotonic() > r.deadline]:
                running.remove(r)
                result = r.result()
                end_strays(running)
                yield r.job, result
    finally:
        end_all(running)
        end_strays([])

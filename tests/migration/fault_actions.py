"""What can go wrong at a fault point: the columns of the hand-over's failure table."""
import os
import random
import re
import signal
import time
import uuid

from lib.process import Deadline, descendants, exists, kill_all, wait_for

# Time-outs for actions that have to wait for them, in ms; long enough for a busy machine.
TIMEOUTS = "connect=2500,answer=2500,freeze=4000,restore=3500,silence=1500,settle=1000"
PAST_TIMEOUTS = 7
JOURNAL = re.compile(r"(source|destination)-journal\.")
INJECT = ("source-guardian.inject-", "source-agent.inject-")
MODES = ("precopy", "stop-copy", "postcopy", "hybrid")
LAZY = MODES[2:]


def await_send(case, seconds=PAST_TIMEOUTS + 5):
    end = time.monotonic() + seconds
    wait_for(lambda: case.sender.poll() is not None or time.monotonic() > end, "send or time-outs", seconds + 5, 0.05)


def cut(case):
    """The cable is pulled for a second; TCP gets over it."""
    case.network.cut("source")
    case.resume()
    time.sleep(1)  # not a wait: for so long it is pulled
    case.plug_in()


def cut_off(case):
    """The cable stays pulled until send has given up."""
    case.network.cut("source")
    case.resume()
    await_send(case, 20)
    case.plug_in()


def kill_agents(case):
    """Both agents are killed; the operator starts them again."""
    case.kill(*case.agents("source"), *case.agents("destination"))
    case.resume()


def kill_peer(case):
    case.kill(*case.agents(case.other_host))
    case.resume()


def kill_guardians(case):
    case.kill(*case.guardians())
    case.resume()


def kill_side(case):
    """Agent and guardian of one host at the same moment; only the watch is left."""
    case.kill(*case.agents(case.host), *case.guardians(case.host))
    case.resume()


def silent_peer(case):
    victims = case.agents(case.other_host)
    case.signal(signal.SIGSTOP, victims)
    case.resume(victims)
    await_send(case)
    case.signal(signal.SIGCONT, victims)


def reboot_destination(case):
    reboot(case, "destination")


def reboot_source(case):
    reboot(case, "source")


def reboot(case, host):
    """Everything of that host dies; its agent comes back under another boot id."""
    agent = case.agent(host)
    victims = [p for p in case.ours() if case.host_of(p) == host]
    tree = descendants(case.old) if host == "source" else descendants(m) if (m := case.find()) else []
    # All at once, as power goes: the guardian must not see its agent die.
    case.signal(signal.SIGSTOP, [*case.guardians(host), *(p for p in victims if case.verb(p) == "guardian-lazy")])
    case.kill(*case.agents(host))
    agent.wait(timeout=10)
    kill_all([*victims, *tree])
    case.resume()
    case.forget_cgroups(host)
    case.tool.boot[host] = str(uuid.uuid4())
    case.rebooted = host
    if host == "destination":
        case.restart_receiver()


def stopped(case):
    """SIGSTOP past every time-out, then SIGCONT."""
    time.sleep(PAST_TIMEOUTS)  # not a wait: for so long it is stopped
    case.resume()


def journal_full(case):
    """While pages come `send` waits, and says for what: the operator makes room."""
    case.fill_disk(case.host)
    case.resume()
    if case.mode in ("postcopy", "hybrid"):
        waits = lambda: "cannot take it: " in case.sent() and "No space left" in case.sent()
        wait_for(lambda: case.sender.poll() is not None or waits(), "send to end or to say what is in the way", 60, 0.05)
        case.make_room()


def out_of_memory(case):
    """Whatever our processes of that host do from here on does not fit into their memory."""
    case.memory.exhaust(case.memory_victims())
    case.resume()


def interrupt(case):
    case.signal(signal.SIGINT, case.agents(case.host))
    case.resume()


def terminate(case):
    case.signal(signal.SIGTERM, case.agents(case.host))
    case.resume()


def hang_up(case):
    """The terminal goes."""
    case.signal(signal.SIGHUP, case.agents(case.host))
    case.resume()


def late_init(case):
    """The guardian dies, the agent opens the gate and takes it away; only then the copy's init sees any of it."""
    inits = [p for p in case.ours() if case.host_of(p) == "destination" and not case.in_our_pid_namespace(p)]
    for p in inits:
        os.kill(p, signal.SIGSTOP)
    case.kill(*case.guardians())
    case.signal(signal.SIGCONT, case.agents("destination"))
    await_send(case, 30)
    for p in inits:
        os.kill(p, signal.SIGCONT)


def kill_tree(case):
    """The frozen tree at the source is killed, which has the only copy of some pages."""
    case.signal(signal.SIGKILL, [case.old])
    wait_for(lambda: not exists(case.old), "the frozen tree to die", 5)
    case.tree_killed = True
    case.resume()


def kill_soon(case):
    """The agent dies somewhere in its first look at the tree, as its tracer perhaps."""
    case.resume()
    time.sleep(random.uniform(0, 0.08))  # not a wait: the moment is what is tried
    case.kill(*case.agents(case.host))


def of_lazy_host(choose):
    """Kills whom `choose` takes of (daemon, holders), in the middle of the feed where it is at its beginning."""
    def act(case):
        if case.point == "source-agent.feeding":
            case.resume()
            time.sleep(random.uniform(0, 0.5))  # not a wait: the moment is what is tried
        try:
            members = case.lazy_host()
        except Deadline:
            if case.point == "source-agent.feeding" and (case.journal("destination") or {}).get("state") in ("WHOLE", "DONE"):
                return  # it was over by then: a move like others
            raise
        case.kill(*choose(*members))
        case.resume()
    return act


def kill_lazy_host(case):
    """All at once: none may follow another."""
    daemon, holders = case.lazy_host()
    case.signal(signal.SIGSTOP, [daemon, *holders])
    case.kill(daemon, *holders)
    case.resume()


class Action:
    """`function`: what happens while the process at the fault point is stopped there; None: it does it itself.
    `points`: where it is tried by default; None: everywhere. `timed`: time-outs have to pass."""

    def __init__(self, function, points=None, timed=False):
        self.function, self.points, self.timed = function, points, timed


def points(names):
    long = {"sa": "source-agent", "sg": "source-guardian", "da": "destination-agent", "dg": "destination-guardian"}
    return [f"{long[n.split('.')[0]]}.{n.split('.')[1]}" for n in names.split()]


ACTIONS = {
    "kill-self": Action(None),
    "fail": Action(None),
    "sync-fails": Action(None),
    "kill-agents": Action(kill_agents, points("sa.frozen sa.ready sa.commit-sent sa.scanned sa.round-sent sg.held "
                                              "sg.inject-parasite-running da.prepared da.round-received "
                                              "dg.gate-journaled")),
    "kill-guardians": Action(kill_guardians, points("sa.frozen sa.ready sa.commit-sent sa.round-sent "
                                                    "da.prepared-shells da.ready-sent da.gate-open da.layout-received")),
    "kill-side": Action(kill_side, points("sa.begun sa.frozen sa.ready sa.scanned sa.round-sent sg.held "
                                          "sg.inject-mapped sg.inject-parasite-running sg.inject-thread-running "
                                          "sg.inject-unmapped da.prepared-shells da.ready-sent da.round-received")),
    "kill-peer": Action(kill_peer, points("sa.begun sa.pages-sent sa.commit-sent sa.round-sent da.images-received "
                                          "da.gate-open da.layout-received")),
    "cut": Action(cut, points("sa.frozen sa.committed sa.round-sent da.pages-received")),
    "cut-off": Action(cut_off, points("sa.begun sa.frozen sa.ready sa.commit-sent sa.round-sent da.ready-sent "
                                      "da.round-received"), True),
    "silent-peer": Action(silent_peer, points("sa.frozen sa.pages-sent sa.commit-sent sa.round-sent "
                                              "da.prepared-shells da.layout-received"), True),
    "stop-self": Action(stopped, points("sa.frozen sa.ready sa.committed sa.scanned sg.inject-parasite-running "
                                        "sg.held sg.before-commit da.ready-sent da.round-received dg.shells dg.warm"), True),
    "reboot-destination": Action(reboot_destination, points("sa.frozen sa.ready sa.commit-sent sa.gate-open "
                                                            "sa.round-sent dg.gate-journaled dg.warm"), True),
    "reboot-source": Action(reboot_source, points("sa.frozen sa.ready sa.commit-sent sa.gate-open sa.round-sent"), True),
    "journal-full": Action(journal_full, points("sa.begun sa.ready sa.round-sent sg.held sg.before-commit da.begun "
                                                "da.commit-received dg.finished dg.warm")),
    "out-of-memory": Action(out_of_memory, points("sa.frozen sa.scanned sg.stopped da.begun da.images-received "
                                                  "da.round-received dg.shells dg.finished dg.warm dg.reserved")),
    "interrupt": Action(interrupt, points("sa.connected sa.checked sa.begun sa.frozen sa.images-sent sa.pages-sent "
                                          "sa.ready sa.commit-sent sa.scanned sa.round-sent sg.stopped da.begun "
                                          "da.prepared-shells da.pages-received da.prepared da.ready-sent "
                                          "da.layout-received da.round-received dg.finished dg.warm sa.reserved "
                                          "da.reserved")),
    "terminate": Action(terminate, points("sa.frozen sa.ready sa.commit-sent sa.round-sent da.begun "
                                          "da.images-received da.round-received dg.shells dg.prepared")),
    "hang-up": Action(hang_up, points("sa.round-sent sa.ready sa.commit-sent da.prepared")),
    "kill-daemon": Action(of_lazy_host(lambda daemon, holders: [daemon])),
    "kill-holder": Action(of_lazy_host(lambda daemon, holders: holders[:1])),
    "kill-other-holder": Action(of_lazy_host(lambda daemon, holders: holders[1:2])),
    "kill-lazy-host": Action(kill_lazy_host),
}
OF_LAZY_HOST = ("kill-daemon", "kill-holder", "kill-other-holder", "kill-lazy-host")

# What else must happen for such a step to be taken at all.
ALSO = {"source-journal.aborted": "source-agent.frozen:fail", "destination-journal.aborted": "destination-agent.prepared:fail"}
# The same, for what our hands have to do: at that point, of another process.
ALSO_DONE = {"destination-journal.lost": ("destination-agent.gate-open", kill_lazy_host)}


# Reached by pre-copy only, and without it only.
OF_ROUNDS = points("sa.scanned sa.round-sent da.round-received")
OF_RESERVE = points("sa.reserved da.reserved dg.reserved")

# Pages are still on their way when the program runs.
OF_FEED = (*points("sa.feeding sa.whole da.feed-let-in da.whole dg.lazily-held dg.whole"), "destination-journal.whole",
           "destination-journal.lost")
# The lazy host is there, and not yet told to leave.
WITH_LAZY_HOST = points("da.feed-let-in dg.lazily-held dg.prepared da.prepared da.ready-sent sa.ready sa.committed sa.commit-sent "
                        "da.commit-received dg.gate-journaled dg.gate-open da.gate-open sa.gate-open sa.feeding")

# What is tried by default where pages come late; the rest is as in the other modes.
LAZY_SPREAD = {
    "kill-self": points("sa.committed sa.feeding sa.whole da.feed-let-in da.gate-open da.whole dg.lazily-held dg.gate-journaled "
                        "dg.gate-open dg.whole sg.killed"),
    "fail": points("sa.feeding da.feed-let-in da.gate-open dg.lazily-held dg.gate-journaled dg.gate-open"),
    "sync-fails": ["source-journal.committed", "destination-journal.gate-open", "destination-journal.whole"],
    "kill-agents": points("sa.feeding sa.whole dg.whole"),
    "kill-guardians": points("sa.feeding da.feed-let-in da.gate-open"),
    "kill-side": points("sa.feeding da.gate-open"),
    "kill-peer": points("sa.feeding da.gate-open"),
    "cut": points("sa.feeding"),
    "reboot-destination": points("sa.feeding"),
    "reboot-source": points("sa.feeding"),
    "journal-full": points("da.commit-received"),
    "out-of-memory": points("dg.finished"),
    "interrupt": points("sa.feeding da.gate-open da.feed-let-in"),
    "kill-daemon": points("da.feed-let-in dg.lazily-held dg.gate-open sa.feeding"),
    "kill-holder": points("dg.lazily-held sa.feeding"),
    "kill-other-holder": points("dg.gate-journaled sa.feeding"),
    "kill-lazy-host": points("dg.prepared sa.feeding"),
}


def by_default(point, action, mode):
    """Whether it is in the spread."""
    if mode in LAZY:
        return point in LAZY_SPREAD.get(action, ())
    return point in (ACTIONS[action].points or [point])


def columns(mode):
    return [a for a in ACTIONS if mode in LAZY or a not in OF_LAZY_HOST]


# Tried at one point only, and no column.
EXTRA = {("destination-agent.ready-sent", "late-init"): Action(late_init),
         ("source-agent.begun", "kill-soon"): Action(kill_soon),
         ("source-agent.feeding", "kill-tree"): Action(kill_tree)}


def inapplicable(point, action, mode):
    """Why that cannot happen there, or None. The reasons are told in migrate/session/README.md."""
    if (action == "sync-fails") != bool(JOURNAL.match(point)):
        return "only the sync behind a journal's rename, and nothing else, fails there"
    if point.startswith(INJECT) and action == "fail":
        return "nothing may throw between infecting and curing a task"
    if point == "source-journal.lost":
        return "only `resolve` writes that, after a restart"
    if mode not in LAZY and (point in OF_FEED or action in OF_LAZY_HOST):
        return "all pages are there before the gate opens"
    if action in OF_LAZY_HOST and point not in WITH_LAZY_HOST:
        return "the lazy host is not there"
    if mode in ("stop-copy", "postcopy") and (point in OF_ROUNDS or point.startswith(INJECT[1])):
        return "that has no rounds"
    if mode != "stop-copy" and point in OF_RESERVE:
        return "rounds bring the pages themselves, or they come late"
    return None

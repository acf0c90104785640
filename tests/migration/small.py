"""The small workloads (tests/workloads/small): which there are, in which bundles they are moved, and which come out wrong."""
import collections
import os

from lib.process import run

PROGRAM = "small"
MOST = 26  # of a bundle

# Options of `dump` and `restore` that those of a subject need.
OPTIONS = {"locks": ("--file-locks",)}

Wrong = collections.namedtuple("Wrong", "modes why")
# name: modes in which it comes out wrong for sure, and what is wrong. They are moved alone, in those modes, and must fail.
KNOWN_WRONG = {
    "calls.accept_with_limit": Wrong(("leave-running",), "accept with SO_RCVTIMEO ends with EINTR when its thread is stopped"),
    "calls.epoll_pwait2": Wrong(("leave-running",), "epoll_pwait2 with a time-out ends with EINTR when its thread is stopped"),
    "calls.receive_with_limit": Wrong(("inplace", "leave-running"), "recv with SO_RCVTIMEO ends with EINTR when its thread is stopped"),
    "calls.send_into_full_socket": Wrong(("leave-running",), "send that has sent a part gives that part when its thread is stopped"),
    "calls.wait_for_signal": Wrong(("leave-running", "live"), "sigtimedwait with a time-out ends with EINTR when its thread is stopped, and runs on"),
    "calls.write_into_full_pipe_partly": Wrong(("leave-running",), "write that has written a part gives that part when its thread is stopped"),
    "files.deleted_and_made_again": Wrong(("inplace", "live"), "a deleted file whose name is another's by now has another name in /proc/PID/fd"),
}

# name: part of the sentence that refuses it. They are tried alone, by `live`, and must be well when it has refused.
REFUSED = {
    "files.own_namespace": "a file of a kind that cannot be moved",
    "memory.policy_of_shared_mapping": "has a memory policy for shared memory",
    "memory.secret": "has secret memory",
    "memory.shared_by_processes": "share their memory",
    "processes.keys_of_process": "has keys in the keyring of its process",
    "processes.keys_of_session": "has keys in the keyring of its session",
    "processes.deadline_scheduling": "runs under scheduling policy 6",
    "processes.own_descriptors_of_thread": "has a descriptor table of its own",
    "processes.own_place_of_thread": "has a working folder of its own",
    "processes.shared_place": "share their working folder",
    "processes.shared_descriptors": "share their descriptor table",
}


class Catalogue:
    """`folder`: where the workloads are built."""

    def __init__(self, folder):
        self.binary = os.path.join(folder, PROGRAM)
        code, out = run([self.binary, "--list"]) if os.access(self.binary, os.X_OK) else (0, "")
        self.names = out.split() if code == 0 else []
        if unknown := sorted({*KNOWN_WRONG, *REFUSED} - set(self.names)) if self.names else []:
            raise ValueError(f"there are no small workloads {', '.join(unknown)}")
        well = [n for n in self.names if n not in KNOWN_WRONG and n not in REFUSED]
        count = -(-len(well) // MOST)
        # Evenly, and each with its neighbours, so that a bundle has one or two subjects.
        cuts = [len(well) * i // count for i in range(count + 1)] if count else []
        self.bundles = {f"bundle-{i + 1}": well[a:b] for i, (a, b) in enumerate(zip(cuts, cuts[1:]))}

    def members(self, bundle, mode):
        return [n for n in self.bundles[bundle] if may_be_in(n, mode)]

    def apart(self, mode):
        """Those that go in no bundle."""
        return [n for n in self.names if n in KNOWN_WRONG and mode in KNOWN_WRONG[n].modes or n in REFUSED and may_be_in(n, mode)]


def subject(name):
    return name.split(".")[0]


def may_be_in(name, mode):
    return name not in REFUSED or mode == "live"


def options(names):
    return [o for s in dict.fromkeys(map(subject, names)) for o in OPTIONS.get(s, ())]

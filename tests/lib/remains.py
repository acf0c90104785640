"""What a migration must not leave behind on this machine: seen before and after."""
import contextlib
import os

from .process import Deadline, all_pids, descendants, exists, kill_all, read, stat_fields, wait_for
from .programs import Unwell


def wait_for_none(folder, sessions):
    """What a case in `folder` with these sessions left must go within seconds; raises Unwell naming what stays."""
    try:
        wait_for(lambda: not of_case(folder, sessions), "clean-up", 10, 0.1)
    except Deadline:
        raise Unwell("left behind: " + "; ".join(of_case(folder, sessions))) from None


def processes(name="migrate"):
    """(pid, start time) of processes whose program is `name`."""
    found = set()
    for pid in all_pids():
        try:
            exe = os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
        except OSError:
            exe = ""
        comm = read(f"/proc/{pid}/comm").strip()
        fields = stat_fields(pid)
        if fields and (exe == name or comm == name or comm.startswith("migrate-")) and fields[0] not in "ZX":
            found.add((pid, fields[19], f"process {pid} ({comm}: {read(f'/proc/{pid}/cmdline').replace(chr(0), ' ')[:120]})"))
    return found


def cgroups():
    found = set()
    for line in read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] not in ("cgroup", "cgroup2"):
            continue
        top = before.split()[4]
        for folder, names, _ in os.walk(top):
            found |= {f"cgroup {folder}/{n}" for n in names if n.startswith("migrate")}
    return found


def listing(folder, what):
    try:
        return {f"{what} {folder}/{name}" for name in os.listdir(folder) if "migrate" in name}
    except OSError:
        return set()


def snapshot(folders=("/tmp", "/run", "/var/run", "/dev/shm")):
    found = {text for _, _, text in processes()} | cgroups() | listing("/run/netns", "network namespace")
    found |= {f"mount {line.split()[4]}" for line in read("/proc/self/mountinfo").splitlines() if "migrate" in line.split()[4]}
    for folder in folders:
        found |= listing(folder, "file")
    return found


def new_since(before, allowed=()):
    return sorted(x for x in snapshot() - before if not any(a in x for a in allowed))


def of_case(folder, sessions):
    """What is left of a case that runs beside others, in its own process: processes below us or with its folder in their
    command line or environment, mounts in its folder, cgroups of its sessions (their ids)."""
    def its(pid):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                return folder.encode() in f.read() or folder in read(f"/proc/{pid}/cmdline")
        except OSError:
            return False
    below = set(descendants(os.getpid()))
    found = [f"process {p} ({read(f'/proc/{p}/cmdline').replace(chr(0), ' ')[:120]})" for p in all_pids()
             if p != os.getpid() and exists(p) and (p in below or its(p))]
    found += [f"mount {line.split()[4]}" for line in read("/proc/self/mountinfo").splitlines() if folder in line.split()[4]]
    return sorted(found + [f"cgroup {c}" for c in cgroups_of(sessions)])


def cgroups_of(sessions, ends=("", "-in", "-lazy-0", "-lazy-1", "-lazy-2")):
    """Of the source's tree, of the destination's, and of the processes of its lazy host."""
    names = {f"migrate-{s}{end}" for s in sessions for end in ends}
    return [c.split(" ", 1)[1] for c in cgroups() if os.path.basename(c) in names]


def sweep_cgroups(sessions):
    """Ends what a failed case left frozen."""
    for folder in cgroups_of(sessions):
        pids = [int(p) for p in read(f"{folder}/cgroup.procs").split()]
        for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            try:
                with open(os.path.join(folder, file), "w") as f:
                    f.write(value)
            except OSError:
                pass
        kill_all(pids)
        with contextlib.suppress(Deadline):
            wait_for(lambda f=folder: removed(f), "the cgroup to empty", 5)


def removed(folder):
    """Who has just died may keep it busy, although it is not listed any more."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True

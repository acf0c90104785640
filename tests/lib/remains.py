"""What a migration must not leave behind on this machine: seen before and after."""
import os

from .process import all_pids, read, stat_fields


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

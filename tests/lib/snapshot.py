"""What /proc says about a tree, made comparable: before a move and after it."""
import os
import re

from .process import descendants, innermost_pid, read, stat_fields

# Fields that a move may change, or that change while a program runs.
STATUS_SKIP = {"State", "VmPeak", "VmSize", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmData", "VmPTE", "VmSwap",
               "HugetlbPages", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches", "Pid", "Tgid", "PPid", "TracerPid",
               "FDSize", "NSpid", "NStgid", "NSpgid", "NSsid", "SigQ", "VmPin", "CoreDumping", "VmStk", "VmExe", "VmLib",
               "Kthread", "Speculation_Store_Bypass", "SpeculationIndirectBranch", "x86_Thread_features",
               "x86_Thread_features_locked", "untag_mask"}
STAT_FIELDS = {"nice": 16, "start_code": 23, "end_code": 24, "start_stack": 25, "exit_signal": 35, "rt_priority": 37,
               "policy": 38, "start_data": 42, "end_data": 43, "start_brk": 44, "arg_start": 45, "arg_end": 46,
               "env_start": 47, "env_end": 48}
VM_FLAGS = {"rd", "wr", "ex", "sh", "gd", "lo", "lf", "sr", "rr", "dc", "nr", "ht", "wf", "dd", "hg", "nh", "mg", "uw", "um"}


def status_facts(text):
    facts = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key not in STATUS_SKIP:
            facts[key] = " ".join(value.split())
    return facts


def maps_facts(pid):
    """(start-end perms offset path flags) a mapping; neighbours that the kernel could merge are merged."""
    result = []
    for line in read(f"/proc/{pid}/smaps").splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            parts = line.split(None, 5)
            start, end = (int(x, 16) for x in parts[0].split("-"))
            path = parts[5] if len(parts) > 5 else ""
            result.append([start, end, parts[1], int(parts[2], 16), path, ""])
        elif line.startswith("VmFlags:"):
            result[-1][5] = " ".join(sorted(VM_FLAGS & set(line.split()[1:])))
    merged = []
    for m in result:
        last = merged[-1] if merged else None
        anonymous = m[4] in ("", "[heap]")
        if last and last[1] == m[0] and last[2] == m[2] and last[4] == m[4] and last[5] == m[5] and \
                (anonymous or last[3] + last[1] - last[0] == m[3]):
            last[1] = m[1]
        else:
            merged.append(m)
    return [f"{m[0]:x}-{m[1]:x} {m[2]} {m[3]:x} {m[4]} [{m[5]}]" for m in merged if m[4] != "[vsyscall]"]


def with_names(tree, pids):
    """Facts of the tasks `pids`, with the kernel's numbers of pipes and sockets replaced by where they are first seen. Two
    snapshots are compared with the tasks that both have first, in the same order, whatever numbers the host gave them."""
    first, result = {}, {}
    for pid in pids:
        result[pid] = facts = dict(tree[pid])
        for fd in sorted((k for k in facts if k.startswith("fd ")), key=lambda k: int(k[3:])):
            target, info = facts[fd]
            if match := re.match(r"^(pipe|socket):\[\d+\]$", target):
                facts[fd] = (first.setdefault(target, f"{match[1]} of task {pid}'s {fd}"), info)
    return result


def fd_facts(pid):
    facts = {}
    try:
        numbers = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        return {}
    for n in numbers:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{n}")
        except OSError:
            continue
        if target.endswith(("/check", "/result.new")):  # a workload that looks for its driver's questions
            continue
        if target.startswith("/memfd:fleeting"):  # made anew all the time
            continue
        info = {}
        for line in read(f"/proc/{pid}/fdinfo/{n}").splitlines():
            key, _, value = line.partition(":")
            key = key.strip()
            if key == "lock":  # "1: POSIX  ADVISORY  WRITE 4242 08:01:1234 0 EOF"
                words = value.split()
                info["locks"] = (*info.get("locks", ()), (*words[1:4], *words[6:]))
            if key in ("flags", "pos", "sigmask", "clockid", "settime flags", "it_interval", "eventfd-semaphore", "tfd"):
                value = " ".join(value.split())
                if key == "tfd":
                    value = " ".join(value.split(" ino:")[0].split())
                    # epoll_ctl always arms for errors and hang-ups: a one-shot entry that was delivered comes back
                    # disarmed only if its file is ready for something at the restore.
                    value = value.replace(" events: 40000018 ", " events: 40000000 ")
                    value = "; ".join(sorted(filter(None, [*info.get(key, "").split("; "), value])))
                    info[key] = value
                else:
                    info[key] = value
        if int(info.get("flags", "0"), 8) & os.O_APPEND:
            info.pop("pos", None)  # follows what was written last
        # A file made with O_TMPFILE shows its inode number.
        facts[n] = (re.sub(r"/#\d+ \(deleted\)$", "/#N (deleted)", target), tuple(sorted(info.items())))
    return facts


def thread_facts(pid, tid):
    base = f"/proc/{pid}/task/{tid}"
    facts = {f"status.{k}": v for k, v in status_facts(read(f"{base}/status")).items()}
    text = read(f"{base}/stat")
    fields = text[text.rindex(")") + 2:].split() if ")" in text else []
    for key, index in STAT_FIELDS.items():
        if len(fields) > index:
            facts[f"stat.{key}"] = fields[index]
    facts["comm"] = read(f"{base}/comm")
    return facts


def task_facts(pid, exact_maps):
    fields = stat_fields(pid)
    if fields is None:
        return {"gone": True}
    facts = {"state": "T" if fields[0] in "Tt" else "Z" if fields[0] == "Z" else "runs"}
    if facts["state"] == "Z":
        facts["exit code"] = fields[49] if len(fields) > 49 else ""
        facts["comm"] = read(f"/proc/{pid}/comm")
        return facts
    for name in ("cmdline", "environ", "auxv", "limits", "personality", "oom_score_adj", "coredump_filter", "timerslack_ns"):
        facts[name] = read(f"/proc/{pid}/{name}")
    # The signal's address and thread ids differ by namespace; the settings must not.
    facts["timers"] = re.sub(r"(pid|tid)[./]\d+", r"\1", read(f"/proc/{pid}/timers"))
    for name in ("exe", "cwd", "root"):
        try:
            facts[name] = os.readlink(f"/proc/{pid}/{name}")
        except OSError as e:
            facts[name] = str(e)
    maps = maps_facts(pid)
    facts["maps"] = maps if exact_maps else [m for m in maps if "/" in m]
    for fd, fact in fd_facts(pid).items():
        facts[f"fd {fd}"] = fact
    # By the numbers that go along: those of this namespace may wrap around in between.
    tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, innermost_pid(f"{pid}/task/{tid}") or tid))
    for place, tid in enumerate(tids):
        for key, value in thread_facts(pid, tid).items():
            facts[f"thread {place} {key}"] = value
    inner = [line.split()[1:] for line in read(f"/proc/{pid}/status").splitlines()
             if line.startswith(("NSpgid:", "NSsid:"))]
    facts["group and session"] = " ".join(x[-1] for x in inner)
    facts["tracer"] = next((x.split()[1] for x in read(f"/proc/{pid}/status").splitlines() if x.startswith("TracerPid:")), "0")
    return facts


def tree_facts(root, exact_maps=True):
    """{pid in its own namespace: facts} of a tree, for differences(). Tasks may come and go meanwhile: those are given as gone."""
    result = {}
    pids = descendants(root)
    for pid in pids:
        inner = innermost_pid(pid)
        if inner is None:
            continue
        try:
            facts = task_facts(pid, exact_maps)
        except OSError:
            continue
        if pid != root:
            parent = stat_fields(pid)
            facts["parent"] = innermost_pid(int(parent[1])) if parent else None
        result[inner] = facts
    return result


def differences(before, after, ignore=(), limit=12):
    """Sentences that tell what changed; `ignore`: regular expressions over "PID KEY"."""
    found = []
    both = sorted(set(before) & set(after))
    before, after = (with_names(tree, [*both, *sorted(set(tree) - set(both))]) for tree in (before, after))
    for pid in sorted(set(before) | set(after)):
        if pid not in after or pid not in before:
            found.append(f"task {pid} is {'missing' if pid in before else 'new'}")
            continue
        a, b = before[pid], after[pid]
        for key in sorted(set(a) | set(b)):
            if a.get(key) == b.get(key) or any(re.search(p, f"{pid} {key}") for p in ignore):
                continue
            found.append(f"task {pid}: {key}: {describe(a.get(key), b.get(key))}")
    return found[:limit] + ([f"... and {len(found) - limit} more"] if len(found) > limit else [])


def describe(a, b):
    if isinstance(a, list) and isinstance(b, list):
        gone, new = [x for x in a if x not in b], [x for x in b if x not in a]
        return f"gone: {gone[:4]}, new: {new[:4]}"
    if isinstance(a, str) and isinstance(b, str) and (len(a) > 200 or "\n" in a.strip()):
        pairs = [(x, y) for x, y in zip(a.splitlines(), b.splitlines()) if x != y]
        return f"was {pairs[0][0]!r}, is {pairs[0][1]!r}" if pairs else f"lengths {len(a)} and {len(b)}"
    return f"was {a!r}, is {b!r}"

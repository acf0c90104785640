"""Compares the decoded fields of an image folder with what /proc said while the tree was stopped (lib/record.py). Each
function gives sentences that tell what differs."""
import re
import signal

STATUS = {"heap": 1 << 5, "vdso": 1 << 3, "vvar": 1 << 12}
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, MEMFD = 1 << 6, 1 << 7, 1 << 8, 1 << 14
ADVICE = {"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}
LIMITS = ("cpu time", "file size", "data size", "stack size", "core file size", "resident set", "processes", "open files",
          "locked memory", "address space", "file locks", "pending signals", "msgqueue size", "nice priority",
          "realtime priority", "realtime timeout")
UNLIMITED = (1 << 64) - 1
CLOEXEC = 0o2000000
PRESENT = 4


class Differences(list):
    def same(self, what, image, proc):
        if image != proc:
            self.append(f"{what}: the image says {image!r}, /proc {proc!r}")


def fields(text):
    return {k: v.strip() for k, _, v in (line.partition(":") for line in (text or "").splitlines())}


def stat(text):
    return text[text.rindex(")") + 2:].split()


def inner(value):
    return int(value.split()[-1])


def zombie(task):
    return stat(task["stat"])[0] in "ZX"


def check_pstree(images, facts):
    d = Differences()
    by_number = {inner(fields(t["status"])["NSpid"]): (p, t) for p, t in facts["tasks"].items()}
    d.same("pstree: tasks", sorted(e["pid"] for e in images.of["pstree"]), sorted(by_number))
    root = images.of["pstree"][0]["pid"]
    for e in images.of["pstree"]:
        if e["pid"] not in by_number:
            continue
        _, task = by_number[e["pid"]]
        s, what = fields(task["status"]), f"pstree of {e['pid']}"
        parent = facts["tasks"].get(s["PPid"])
        d.same(f"{what}: ppid", e["ppid"], 0 if e["pid"] == root else inner(fields(parent["status"])["NSpid"]))
        d.same(f"{what}: pgid", e["pgid"], inner(s["NSpgid"]))
        d.same(f"{what}: sid", e["sid"], inner(s["NSsid"]))
        tids = sorted(inner(fields(t["status"])["NSpid"]) for t in task["threads"].values())
        d.same(f"{what}: threads", sorted(e["threads"]), tids)
    return d


def check_creds(d, what, image, status):
    names = (("Uid", ("uid", "euid", "suid", "fsuid")), ("Gid", ("gid", "egid", "sgid", "fsgid")))
    for key, parts in names:
        for part, value in zip(parts, status[key].split()):
            d.same(f"{what}: {part}", image[part], int(value))
    d.same(f"{what}: groups", sorted(image.get("groups", [])), sorted(int(g) for g in status["Groups"].split()))
    for field, key in (("cap_inh", "CapInh"), ("cap_prm", "CapPrm"), ("cap_eff", "CapEff"), ("cap_bnd", "CapBnd")):
        words = image.get(field, [0, 0])
        d.same(f"{what}: {field}", words[0] | words[1] << 32, int(status[key], 16))


def check_new_creds(d, images, number, status):
    """Fields that Debian's crit is too old for."""
    what, text = f"creds of {number}", images.decode(f"creds-{number}", "images/creds.proto", "img.creds_entry")[0]
    ambient = list(map(int, re.findall(r"^cap_amb: (\d+)", text, re.M))) or [0, 0]
    d.same(f"{what}: cap_amb", ambient[0] | ambient[1] << 32, int(status["CapAmb"], 16))
    no_new = re.search(r"^no_new_privs: (\d+)", text, re.M)
    d.same(f"{what}: no_new_privs", int(no_new[1]) if no_new else 0, int(status["NoNewPrivs"]))


def check_limits(d, what, image, text):
    rows = {line[:26].strip().removeprefix("Max ").lower(): line[26:].split() for line in text.splitlines()[1:]}
    for name, e in zip(LIMITS, image["rlimits"]["rlimits"], strict=True):
        want = [UNLIMITED if v == "unlimited" else int(v) for v in rows[name][:2]]
        d.same(f"{what}: limit of {name}", [e["cur"], e["max"]], want)


def check_signals(d, what, tc, status):
    caught, ignored = int(status["SigCgt"], 16), int(status["SigIgn"], 16)
    numbers = [s for s in range(1, 65) if s not in (signal.SIGKILL, signal.SIGSTOP)]
    d.same(f"{what}: number of sigactions", len(tc["sigactions"]), len(numbers))
    for s, action in zip(numbers, tc["sigactions"]):
        want = "caught" if caught >> (s - 1) & 1 else "ignored" if ignored >> (s - 1) & 1 else "default"
        handler = action["sigaction"]
        # SIG_IGN and SIG_DFL; signals ignored by default are not in SigIgn unless set so.
        d.same(f"{what}: signal {s}", "default" if handler == 0 else "ignored" if handler == 1 else "caught", want)
    pending = 0
    for e in tc.get("signals_s", {}).get("signals", []):
        pending |= 1 << (number_of(e) - 1)
    check_pending(d, f"{what}: shared pending signals", pending, status["ShdPnd"])


def check_pending(d, what, image, proc):
    """A stopped task still gets signals, from its timers for example, after its queue was read."""
    if image & ~int(proc, 16):
        d.append(f"{what}: the image says {image:016x}, /proc {proc}")


def number_of(entry):
    """si_signo of a siginfo, which crit gives as base64."""
    import base64
    return int.from_bytes(base64.b64decode(entry["siginfo"])[:4], "little")


def check_timers(d, what, tc, text):
    """/proc/PID/timers has neither the time left nor the interval."""
    listed = []
    for line in (text or "").splitlines():
        key, _, value = line.partition(": ")
        if key == "ID":
            listed.append({"id": int(value)})
        elif listed:
            listed[-1][key] = value
    posix = {t["it_id"]: t for t in tc["timers"].get("posix", [])}
    d.same(f"{what}: POSIX timers", sorted(posix), sorted(t["id"] for t in listed))
    for t in listed:
        e = posix.get(t["id"])
        if not e:
            continue
        number, _, value = t["signal"].partition("/")
        kinds = {"signal": 0, "none": 1, "thread": 2}
        method, _, target = t["notify"].partition("/")
        want = kinds[method] | (4 if target.startswith("tid") else 0)
        d.same(f"{what}: clock of timer {t['id']}", e["clock_id"], int(t["ClockID"]) & 0xffffffff)
        d.same(f"{what}: signal of timer {t['id']}", e["si_signo"], int(number))
        d.same(f"{what}: notification of timer {t['id']}", e["it_sigev_notify"], want)
        if value not in ("", "(null)"):
            d.same(f"{what}: value of timer {t['id']}", e["sival_ptr"], int(value, 16))


def check_core(images, facts):
    d = Differences()
    for pid, task in facts["tasks"].items():
        number = inner(fields(task["status"])["NSpid"])
        what = f"core of {number}"
        core = images.only(f"core-{number}")
        tc = core["tc"]
        d.same(f"{what}: comm", tc["comm"], fields(task["status"])["Name"].encode().decode("unicode_escape"))
        if zombie(task):
            d.same(f"{what}: exit code", tc["exit_code"], int(stat(task["stat"])[49]))
            continue
        status = fields(task["status"])
        d.same(f"{what}: personality", tc["personality"], int(task["personality"], 16))
        d.same(f"{what}: oom_score_adj", tc["oom_score_adj"], int(task["oom_score_adj"]))
        d.same(f"{what}: loginuid", tc.get("loginuid"), int(task["loginuid"]) if task["loginuid"] else None)
        check_limits(d, what, tc, task["limits"])
        check_signals(d, what, tc, status)
        check_timers(d, what, tc, task["timers"])
        check_creds(d, f"creds of {number}", images.only(f"creds-{number}"), status)
        check_new_creds(d, images, number, status)
        d.same(f"{what}: ids", core["ids"], images.only(f"ids-{number}"))
        for tid, thread in task["threads"].items():
            check_thread(d, images, thread)
    return d


def check_thread(d, images, thread):
    status = fields(thread["status"])
    tid = inner(status["NSpid"])
    if f"core-{tid}" not in images.of:
        d.append(f"thread {tid} has no core image")
        return
    e, s = images.only(f"core-{tid}")["thread_core"], stat(thread["stat"])
    what = f"core of thread {tid}"
    d.same(f"{what}: blocked signals", f"{e['blk_sigset']:016x}", status["SigBlk"])
    d.same(f"{what}: comm", e["comm"], thread["comm"].rstrip("\n"))
    pending = 0
    for p in e.get("signals_p", {}).get("signals", []):
        pending |= 1 << (number_of(p) - 1)
    check_pending(d, f"{what}: pending signals", pending, status["SigPnd"])
    d.same(f"{what}: policy", e["sched_policy"], int(s[38]))
    d.same(f"{what}: real-time priority", e.get("sched_prio", 0), int(s[37]))
    d.same(f"{what}: nice", e["sched_nice"], int(s[16]))
    check_creds(d, what, e["creds"], status)
    for own in images.own.get("migrate-ext", []):
        if re.match(rf"tid: {tid}\n", own) and thread["affinity"] is not None:
            bits = re.search(r'^affinity: "(.*)"$', own, re.M)
            raw = bits[1].encode().decode("unicode_escape").encode("latin-1") if bits else b""
            cpus = [i for i in range(len(raw) * 8) if raw[i // 8] >> (i % 8) & 1]
            d.same(f"{what}: affinity", cpus, thread["affinity"])


def mappings(task):
    found = []
    for line in task["smaps"].splitlines():
        m = re.match(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+) *(.*)$", line)
        if m:
            found.append({"start": int(m[1], 16), "end": int(m[2], 16), "perms": m[3], "offset": int(m[4], 16),
                          "inode": int(m[6]), "name": m[7], "flags": set()})
        elif line.startswith("VmFlags:"):
            found[-1]["flags"] = set(line.split()[1:])
    return [m for m in found if m["name"] != "[vsyscall]"]


def check_mm(images, facts):
    d = Differences()
    files = {e["id"]: e for e in images.of["files"]}
    for task in facts["tasks"].values():
        if zombie(task):
            continue
        number = inner(fields(task["status"])["NSpid"])
        mm, s, what = images.only(f"mm-{number}"), stat(task["stat"]), f"mm of {number}"
        for field, index in (("start_code", 23), ("end_code", 24), ("start_stack", 25), ("start_data", 42), ("end_data", 43),
                             ("start_brk", 44), ("arg_start", 45), ("arg_end", 46), ("env_start", 47), ("env_end", 48)):
            d.same(f"{what}: {field}", mm[f"mm_{field}"], int(s[index]))
        d.same(f"{what}: auxv", mm["mm_saved_auxv"][:len(task["auxv"])], task["auxv"])
        d.same(f"{what}: exe", name_of(files[mm["exe_file_id"]]), task["exe"].removesuffix(" (deleted)"))
        heap = [m for m in mappings(task) if m["name"] == "[heap]"]
        if heap:
            d.same(f"{what}: end of the heap", mm["mm_brk"], heap[-1]["end"])
        # [vsyscall] and guard regions are no mappings of their own.
        check_vmas(d, what, [v for v in mm["vmas"] if not v["status"] & (1 << 2 | 1 << 16)], mappings(task), files, images)
        check_pages(d, images, number, task)
    return d


def name_of(entry, images=None):
    if "memfd" in entry and images:
        inode = entry["memfd"]["inode_id"]
        return next(f"/memfd:{m['name']}" for m in images.of["memfd"] if m["inode_id"] == inode)
    return entry.get("reg", {}).get("name")


def check_vmas(d, what, vmas, maps, files, images):
    d.same(f"{what}: mappings", [f"{v['start']:x}-{v['end']:x}" for v in vmas], [f"{m['start']:x}-{m['end']:x}" for m in maps])
    for v, m in zip(vmas, maps):
        where = f"{what}: {m['start']:x}-{m['end']:x} {m['name']}"
        prot = "".join(c if v["prot"] & bit else "-" for c, bit in (("r", 1), ("w", 2), ("x", 4)))
        d.same(f"{where}: protection", prot + ("s" if v["flags"] & 1 else "p"), m["perms"])
        d.same(f"{where}: MAP_GROWSDOWN", bool(v["flags"] & 0x100), "gd" in m["flags"])
        d.same(f"{where}: MAP_LOCKED", bool(v["flags"] & 0x2000), "lo" in m["flags"])
        d.same(f"{where}: MAP_NORESERVE", bool(v["flags"] & 0x4000), "nr" in m["flags"])
        if not m["name"].startswith("[v"):  # the kernel's own have flags that nobody asked for
            d.same(f"{where}: advice", v.get("madv", 0), sum(1 << n for f, n in ADVICE.items() if f in m["flags"]))
        for name, bit in STATUS.items():
            d.same(f"{where}: is {name}", bool(v["status"] & bit), m["name"].startswith(f"[{name}"))
        if v["status"] & (FILE_PRIVATE | FILE_SHARED):
            d.same(f"{where}: offset", v["pgoff"], m["offset"])
            d.same(f"{where}: file", name_of(files[v["shmid"]], images), m["name"].removesuffix(" (deleted)"))
            d.same(f"{where}: is shared", bool(v["status"] & FILE_SHARED), m["perms"][3] == "s")
        else:
            d.same(f"{where}: has a file", m["inode"] != 0, bool(v["status"] & (ANON_SHARED | MEMFD)))


def check_pages(d, images, number, task):
    """The pages in the image: all anonymous ones of private mappings, none that /proc does not know."""
    head, *runs = images.of[f"pagemap-{number}"]
    total = sum(r["nr_pages"] for r in runs if r.get("flags", PRESENT) & PRESENT)
    if total:
        d.same(f"pages of {number}: bytes", images.raw[f"pages-{head['pages_id']}"], total * 4096)
    for m in mappings(task):
        if m["perms"][3] == "s" or m["name"].startswith("[v"):
            continue
        inside = sum(max(0, min(m["end"], r["vaddr"] + r["nr_pages"] * 4096) - max(m["start"], r["vaddr"])) // 4096 for r in runs)
        written, nonzero = task["pages"][str(m["start"])]
        # Of anonymous memory, pages of zeros need not be in the image.
        least = nonzero if m["inode"] == 0 else written
        if not least <= inside <= written:
            d.append(f"pages of {number} in {m['start']:x}-{m['end']:x} {m['name']}: the image has {inside}, of {written} "
                     f"written ones, {nonzero} with content")


def check_files(images, facts):
    d = Differences()
    files, pipes = {e["id"]: e for e in images.of["files"]}, {}
    for task in facts["tasks"].values():
        if zombie(task):
            continue
        number = inner(fields(task["status"])["NSpid"])
        table = images.of[f"fdinfo-{images.only(f'ids-{number}')['files_id']}"]
        d.same(f"descriptors of {number}", sorted(e["fd"] for e in table), sorted(map(int, task["fds"])))
        for e in table:
            fact = task["fds"].get(str(e["fd"]))
            if fact:
                check_descriptor(d, f"fd {e['fd']} of {number}", e, files.get(e["id"]), fact, pipes)
        fs = images.only(f"fs-{number}")
        d.same(f"cwd of {number}", name_of(files[fs["cwd_id"]]), task["cwd"].removesuffix(" (deleted)"))
        d.same(f"root of {number}", name_of(files[fs["root_id"]]), task["root"])
        d.same(f"umask of {number}", fs["umask"], int(fields(task["status"])["Umask"], 8))
    return d


def check_descriptor(d, what, e, file, fact, pipes):
    if file is None:
        d.append(f"{what}: its file {e['id']} is in no image")
        return
    info = fields(fact["info"])
    flags = int(info["flags"], 8)
    d.same(f"{what}: close-on-exec", e["flags"] & 1, int(bool(flags & CLOEXEC)))
    if "type" not in e:  # newer than Debian's crit
        d.same(f"{what}: a pidfd", fact["link"].startswith(("anon_inode:[pidfd]", "pidfd:")), True)
        return
    d.same(f"{what}: type", e["type"], file["type"])
    body = next(v for k, v in file.items() if k not in ("type", "id"))
    if "flags" in body and isinstance(body["flags"], int):
        # O_LARGEFILE is the kernel's, O_CLOEXEC the descriptor's; an eventfd's flags have EFD_SEMAPHORE, too.
        semaphore = 1 if "efd" in file and info.get("eventfd-semaphore") == "1" else 0
        d.same(f"{what}: flags", f"{body['flags'] & ~0o2100000 & ~semaphore:o}", f"{flags & ~0o2100000:o}")
    if "reg" in file:
        d.same(f"{what}: path", body["name"], fact["link"].removesuffix(" (deleted)"))
        d.same(f"{what}: position", body["pos"], int(info["pos"]))
        d.same(f"{what}: mode", body["mode"], fact["stat"]["mode"])
        if "size" in body:
            d.same(f"{what}: size", body["size"], fact["stat"]["size"])
    if "efd" in file:
        d.same(f"{what}: counter", body["counter"], int(info["eventfd-count"], 16))
    if "epfd" in file:
        watched = [line.split() for line in fact["info"].splitlines() if line.startswith("tfd:")]
        d.same(f"{what}: watched", sorted(t["tfd"] for t in body.get("tfd", [])), sorted(int(w[1]) for w in watched))
    if "sgfd" in file:
        d.same(f"{what}: mask", f"{body['sigmask']:016x}", info["sigmask"])
    if "pipe" in file:
        # Any number will do, if it is the same for the same pipe, and only for that.
        d.same(f"{what}: pipe", pipes.setdefault(("number", body["pipe_id"]), fact["link"]), fact["link"])
        d.same(f"{what}: number", pipes.setdefault(("link", fact["link"]), body["pipe_id"]), body["pipe_id"])
    if "isk" in file or "usk" in file:
        d.same(f"{what}: inode", body["ino"], int(re.search(r"\[(\d+)\]", fact["link"])[1]))


def check_the_rest(images, facts):
    d = Differences()
    inventory = images.only("inventory")
    d.same("inventory: version", inventory["img_version"], 2)
    d.same("inventory: descriptors by table", inventory["fdinfo_per_id"], True)
    uptime = inventory["dump_uptime"] / 1e6
    if not 0 <= facts["boottime"] - uptime < 30:
        d.append(f"inventory: dump_uptime is {uptime}, CLOCK_BOOTTIME was {facts['boottime']}")
    sets = {s["id"]: s for s in images.only("cgroup")["sets"]}
    living = [t for t in facts["tasks"].values() if not zombie(t)]
    for task in living:
        number = inner(fields(task["status"])["NSpid"])
        members = sets[images.only(f"core-{number}")["tc"]["cg_set"]]["ctls"]
        want = [line.split(":", 2)[1:] for line in task["cgroup"].splitlines()]
        # While the dump holds the tree it is in a cgroup of the dump's own.
        seen = sorted((m["name"], m["path"]) for m in members)
        if seen != sorted(map(tuple, want)):
            ours = [w for w in want if "migrate" not in w[1]]
            missing = [w for w in ours if tuple(w) not in seen]
            if missing:
                d.append(f"cgroups of {number}: {missing} is not in the image")
    stats = images.only("stats-dump")["dump"]
    pages = sum(images.raw.values()) // 4096
    d.same("stats-dump: pages written", stats["pages_written"], pages)
    if not 0 < stats["freezing_time"] <= 10_000_000 or not 0 < stats["memdump_time"] < stats["frozen_time"]:
        d.append(f"stats-dump: impossible times {stats}")
    if stats["pages_scanned"] < stats["pages_written"]:
        d.append(f"stats-dump: more pages written than scanned: {stats}")
    check_clocks(d, images, facts)
    return d


def check_clocks(d, images, facts):
    """timens: the clocks as the tree read them, which is ours plus the offsets of its namespace."""
    texts = images.own.get("timens-9") or []
    entry = images.of.get("timens-9", [None])[0]
    root = next(iter(facts["tasks"].values()))
    offsets = {p[0]: int(p[1]) + int(p[2]) / 1e9 for line in (root["timens_offsets"] or "").splitlines() if len(p := line.split()) == 3}
    if entry is None and texts:
        numbers = list(map(int, re.findall(r"tv_n?sec: (\d+)", texts[0])))
        entry = {"monotonic": {"tv_sec": numbers[0], "tv_nsec": numbers[1]},
                 "boottime": {"tv_sec": numbers[2], "tv_nsec": numbers[3]}}
    if entry is None:
        d.append("there is no timens image")
        return
    for name in ("monotonic", "boottime"):
        seen = entry[name]["tv_sec"] + entry[name]["tv_nsec"] / 1e9
        late = facts[name] + offsets.get(name, 0.0) - seen
        if not -0.001 < late < 30:
            d.append(f"timens: {name} is {seen}, the tree's clock was {seen + late}")


CHECKS = (check_pstree, check_core, check_mm, check_files, check_the_rest)

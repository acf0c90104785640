"""Starting, finding and ending processes; waits have deadlines."""
import ctypes
import os
import signal
import subprocess
import time

PR_SET_CHILD_SUBREAPER = 36


class Deadline(Exception):
    """Something did not happen in time."""


def become_subreaper():
    """Orphans of our children become our children, so that nothing gets lost."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def own_session_keyring():
    """Programs that we start inherit none of the keys that are in the session keyring of who started us."""
    keyctl, join_session_keyring = 250, 1
    ctypes.CDLL(None, use_errno=True).syscall(keyctl, join_session_keyring, None)  # without keys there are none


def wait_for(condition, what, seconds=20, step=0.01):
    """Calls `condition` until it gives something true, which is returned; raises Deadline after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Deadline(f"waited {seconds:g} s in vain for {what}")
        time.sleep(step)


def read(path, otherwise=""):
    try:
        with open(path, errors="surrogateescape") as f:
            return f.read()
    except OSError:
        return otherwise


def stat_fields(pid):
    """The fields of /proc/PID/stat from the third on (state first), or None if there is no such task."""
    text = read(f"/proc/{pid}/stat")
    return text[text.rindex(")") + 2:].split() if ")" in text else None


def exists(pid):
    """True while the task is there and no zombie."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid):
    """`pid` and all below it, parents first, as this pid namespace numbers them."""
    children = {}
    for p in all_pids():
        fields = stat_fields(p)
        if fields:
            children.setdefault(int(fields[1]), []).append(p)
    found, queue = [], [pid]
    while queue:
        p = queue.pop(0)
        found.append(p)
        queue += sorted(children.get(p, []))
    return found


def start_times(pids):
    """{pid: start time}: what tells a task from a later one with its number."""
    return {p: f[19] for p in pids if (f := stat_fields(p))}


def kill_tree(pid, seconds=5):
    """Ends `pid` and all below it, by their numbers, and reaps what is ours."""
    kill_all(descendants(pid), seconds)


def kill_all(pids, seconds=5):
    known = start_times(pids)
    for p in known:
        for sig in (signal.SIGKILL, signal.SIGCONT):
            try:
                os.kill(p, sig)
            except OSError:
                pass

    def gone():
        reap(known)
        return not [p for p, t in start_times(known).items() if t == known[p] and exists(p)]
    try:
        wait_for(gone, "processes to end", seconds)
    except Deadline:
        return False
    return True


def reap(pids):
    """Collects those of `pids` that are our zombies."""
    for p in pids:
        try:
            os.waitpid(p, os.WNOHANG)
        except (ChildProcessError, OSError):
            pass


def defaults():
    """In a forked child: what we inherited (nohup ignores SIGHUP, a shell's background jobs SIGINT and SIGQUIT) is not for what
    we start, which may well look."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def run(command, *, prefix=(), timeout=60, log=None, env=None, cwd=None):
    """Runs a command to its end; gives (exit code, output of both streams). A time-out kills it and counts as code 124."""
    full = [*prefix, *map(str, command)]
    environment = {**os.environ, **(env or {})}
    with subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                          cwd=cwd, start_new_session=True, preexec_fn=defaults) as p:
        try:
            out, _ = p.communicate(timeout=timeout)
            code = p.returncode
        except subprocess.TimeoutExpired:
            kill_tree(p.pid)
            out, _ = p.communicate()
            code = 124
    text = out.decode(errors="replace")
    if log:
        with open(log, "a") as f:
            f.write(f"$ {' '.join(full)}\n{text}[exit {code}]\n")
    return code, text


def spawn(command, *, log, prefix=(), env=None, cwd=None, clean_env=False, stdin=subprocess.DEVNULL, pass_fds=()):
    """Starts a command in a session of its own, its output in the file `log`."""
    environment = dict(env or {}) if clean_env else {**os.environ, **(env or {})}
    with open(log, "ab") as out:
        return subprocess.Popen([*prefix, *map(str, command)], stdin=stdin, stdout=out, stderr=out, env=environment, cwd=cwd,
                                start_new_session=True, preexec_fn=defaults, pass_fds=pass_fds)


def innermost_pid(pid):
    """The number the task has in its own pid namespace."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return None


def find_moved(inner, comm, word=""):
    """The task that its own pid namespace, which is not ours, numbers `inner`, whose name is `comm` and whose command line
    holds `word`; or None."""
    ours = os.readlink("/proc/self/ns/pid")
    for p in all_pids():
        try:
            if os.readlink(f"/proc/{p}/ns/pid") == ours:
                continue
        except OSError:
            continue
        if innermost_pid(p) == inner and read(f"/proc/{p}/comm").rstrip("\n") == comm and exists(p) and \
                word in read(f"/proc/{p}/cmdline"):
            return p
    return None

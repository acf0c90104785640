"""The programs that are moved. Each can be started, asked whether it is well, and found again."""
import http.client
import os
import shutil
import signal
import subprocess

from . import redis
from .netns import call_in
from .process import descendants, exists, innermost_pid, kill_all, read, reap, spawn, stat_fields, wait_for
from .skip import Skip

HERE = os.path.dirname(os.path.abspath(__file__))


class Unwell(Exception):
    """A program says, or shows, that it is not what it was."""


class Program:
    """One started program. `folder` is its own; `ns`: the network namespace it is in now (None: ours)."""
    name = "program"
    exact_maps = True
    churn = False      # tasks come and go
    ignore = ()        # facts that change while it runs
    ignore_live = (r"thread \d+ status\.(Cpus|Mems)_allowed",)
    dump_options = ()

    def __init__(self, folder, prefix=(), ns=None):
        self.folder = folder
        self.ns = ns
        self.tokens = 0
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o777)
        self.process = spawn(self.command(), log=os.path.join(folder, "output"), prefix=prefix, cwd=folder,
                             env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "HOME": folder,
                                  "PYTHONDONTWRITEBYTECODE": "1"}, clean_env=True)
        self.pid = self.process.pid
        self.inner = self.pid
        self.everybody = {self.pid}

    def command(self):
        raise NotImplementedError

    def ready(self):
        """Waits until it is set up."""

    def check(self):
        """Raises Unwell unless it is as it should be."""

    def settle(self):
        """Called before a dump: no connection of ours may be open."""

    def alive_or_raise(self):
        if self.process is not None and self.process.poll() is not None and not exists(self.pid):
            raise Unwell(f"{self.name} has ended ({self.process.returncode}): {read(self.folder + '/output')[-500:]}")

    def comm(self):
        return read(f"/proc/{self.pid}/comm").rstrip("\n")

    def remember(self):
        self.everybody |= set(descendants(self.pid))

    def moved_to(self, pid, ns):
        self.pid, self.ns = pid, ns
        self.remember()

    def reap_old(self, *keep):
        """After a dump or a move killed it: the numbers become free when its tasks, which came to us, are collected.
        `keep`: children of ours that somebody else waits for."""
        if self.process is not None:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                raise Unwell(f"process {self.pid} should have been killed and is in state {stat_fields(self.pid)[0]}") from None
            self.process = None
        reap([p for p in descendants(os.getpid()) if p not in keep and (f := stat_fields(p)) and f[0] == "Z" and
              int(f[1]) == os.getpid()])

    def end(self):
        """Ends it wherever it is now. Numbers are only used while they are its own."""
        if exists(self.pid) or self.process is not None:
            kill_all(descendants(self.pid))
        if self.process is not None:
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass
        for line in read(os.path.join(self.folder, "ipc")).splitlines():  # what workloads of System V objects leave
            subprocess.run(["ipcrm", *line.split()], stderr=subprocess.DEVNULL)
        mine = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()
                and self.folder.encode() in environment(p) and innermost_pid(p) is not None]
        kill_all([int(p) for p in mine])


def environment(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            return f.read()
    except OSError:
        return b""


class Asked(Program):
    """A program that follows the contract of tests/workloads/README.md."""

    def ready(self):
        def there():
            status = read(os.path.join(self.folder, "status"))
            if status.startswith("SKIP "):
                raise Skip(status[5:].strip())
            self.alive_or_raise()
            return status.startswith("READY")
        wait_for(there, f"{self.name} to be ready", 40)

    def check(self):
        self.tokens += 1
        token = f"{os.getpid()}-{self.tokens}"
        new = os.path.join(self.folder, "check.driver")
        with open(new, "w") as f:
            f.write(token)
        os.rename(new, os.path.join(self.folder, "check"))

        def answer():
            text = read(os.path.join(self.folder, "result"))
            if text.startswith(token + " "):
                return text
            if not exists(self.pid):
                raise Unwell(f"{self.name} (process {self.pid}) is dead: {read(self.folder + '/output')[-500:]}")
            return None
        text = wait_for(answer, f"{self.name} (process {self.pid}) to answer", 45)
        if not text.split(" ", 1)[1].startswith("PASS"):
            raise Unwell(f"{self.name}: {text.split(' ', 1)[1].strip()}")


class Workload(Asked):
    """One of tests/workloads."""

    def __init__(self, name, binary, arguments, folder, prefix=(), ns=None):
        self.name = name
        self.line = [binary, folder, *arguments]
        base = os.path.basename(binary)
        if base in ("timers", "sections", "many_timers", "timer_signals"):
            self.ignore = (r"status\.(SigPnd|ShdPnd|SigBlk)$",)  # its signals come all the time
        super().__init__(folder, prefix, ns)

    def command(self):
        return self.line


class Members(Unwell):
    """Some of a bundle's workloads are wrong: {name: sentence}."""

    def __init__(self, wrong):
        super().__init__("; ".join(f"{name}: {why}" for name, why in wrong.items()))
        self.wrong = wrong


class Bundle(Workload):
    """Small workloads that are moved together (tests/workloads/small). `skipped`: {name: why it cannot be here}."""
    skipped, owners = {}, {}
    churn = True  # some have a child end at each check; they know themselves whom they miss

    def __init__(self, name, binary, members, folder, prefix=(), ns=None):
        self.members = members
        super().__init__(name, binary, members, folder, prefix, ns)

    def ready(self):
        super().ready()
        lines = read(os.path.join(self.folder, "skipped")).splitlines()
        self.skipped = dict(line.split(": ", 1) for line in lines)
        # Whose processes are which.
        lines = {p: read(f"/proc/{p}/cmdline").split("\0") for p in descendants(self.pid) if p != self.pid}
        self.owners = {innermost_pid(p): line[2] for p, line in lines.items() if len(line) > 2 and line[2] in self.members}

    def check(self):
        try:
            super().check()
        except Unwell as e:
            parts = str(e).removeprefix(self.name + ": ").removeprefix("FAIL ").split(" | ")
            wrong = dict(p.split(": ", 1) for p in parts if p.split(": ", 1)[0] in self.members)
            if len(wrong) == len(parts):
                raise Members(wrong) from None
            raise


class Python(Asked):
    name = "python"
    exact_maps = False
    ignore = (r"status\.(SigBlk|SigPnd|ShdPnd)",)

    def command(self):
        return ["/usr/bin/python3", os.path.join(HERE, "moved_program.py"), self.folder]


class Redis(Program):
    name = "redis"
    exact_maps = False
    port = 6390

    def command(self):
        return ["redis-server", "--port", self.port, "--bind", "0.0.0.0", "--save", "", "--appendonly", "no", "--dir", self.folder,
                "--enable-debug-command", "yes", "--daemonize", "no", "--protected-mode", "no", "--io-threads", "2"]

    def client(self):
        return call_in(self.ns, lambda: redis.Client("127.0.0.1", self.port))

    def ask(self, *command):
        client = wait_for(lambda: quietly(self.client), "redis-server to answer", 20)
        try:
            return client.command(*command)
        finally:
            client.close()

    def ready(self):
        self.ask("PING")
        client = self.client()
        for start in range(0, 20000, 1000):
            client.batch([("SET", f"key:{i}", f"value {i} " + "x" * (i % 300)) for i in range(start, start + 1000)])
        client.batch([("RPUSH", "list", i) for i in range(500)] + [("ZADD", "zset", i * 1.5, f"m{i}") for i in range(500)])
        client.close()
        self.digest = self.ask("DEBUG", "DIGEST")
        self.run_id = self.info("run_id")
        self.uptime = int(self.info("uptime_in_seconds"))

    def info(self, field):
        for line in self.ask("INFO").decode().splitlines():
            if line.startswith(field + ":"):
                return line.split(":", 1)[1]
        return None

    def check(self):
        if self.ask("DEBUG", "DIGEST") != self.digest:
            raise Unwell("redis-server's data changed")
        if self.info("run_id") != self.run_id:
            raise Unwell("another redis-server answers")
        if int(self.info("uptime_in_seconds")) < self.uptime:
            raise Unwell("redis-server's uptime went back")
        self.uptime = int(self.info("uptime_in_seconds"))
        if self.ask("SET", "probe", "1", "PX", "60000") != b"OK" or self.ask("GET", "probe") != b"1" or self.ask("DEL", "probe") != 1:
            raise Unwell("redis-server does not take writes")

    def settle(self):
        wait_for(lambda: not established(self.pid, self.port), "connections to redis-server to end", 10)


class Nginx(Program):
    name = "nginx"
    exact_maps = False
    port = 6391

    def command(self):
        conf = os.path.join(self.folder, "nginx.conf")
        for d in ("body", "fastcgi", "proxy", "scgi", "uwsgi"):
            os.makedirs(os.path.join(self.folder, d), exist_ok=True)
        with open(os.path.join(self.folder, "page"), "w") as f:
            f.write("page " * 10000)
        temporary = "\n".join(f"{n}_temp_path {self.folder}/{d};" for n, d in
                              (("client_body", "body"), ("fastcgi", "fastcgi"), ("proxy", "proxy"), ("scgi", "scgi"), ("uwsgi", "uwsgi")))
        with open(conf, "w") as f:
            f.write(f"""daemon off; master_process on; worker_processes 2; user root; pid {self.folder}/pid;
error_log {self.folder}/error.log info;
events {{ worker_connections 64; }}
http {{ access_log {self.folder}/access.log; {temporary}
server {{ listen 0.0.0.0:{self.port}; keepalive_timeout 0; root {self.folder};
location /pid {{ return 200 "$pid"; }} }} }}
""")
        return ["nginx", "-c", conf, "-p", self.folder, "-e", os.path.join(self.folder, "error.log")]

    def get(self, path):
        def request():
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                c.request("GET", path)
                r = c.getresponse()
                return r.status, r.read()
            finally:
                c.close()
        return call_in(self.ns, request)

    def ready(self):
        wait_for(lambda: quietly(lambda: self.get("/page")), "nginx to answer", 20)
        wait_for(lambda: len(descendants(self.pid)) == 3, "nginx's two workers", 10)
        self.inner_pids = sorted(innermost_pid(p) for p in descendants(self.pid))

    def check(self):
        status, body = wait_for(lambda: quietly(lambda: self.get("/page")), "nginx to answer", 20)
        if status != 200 or body != b"page " * 10000:
            raise Unwell(f"nginx gave status {status} and {len(body)} bytes")
        if sorted(innermost_pid(p) for p in descendants(self.pid)) != self.inner_pids:
            raise Unwell("nginx's processes are others")
        for _ in range(10):
            worker = int(self.get("/pid")[1])
            if worker not in self.inner_pids:
                raise Unwell(f"worker {worker} was none before")

    def settle(self):
        wait_for(lambda: not established(self.pid, self.port), "connections to nginx to end", 10)


class NginxReplaced(Nginx):
    """While its binary is replaced: the old master has started a new one, which has the same sockets, and both have workers. Each check
    goes forth to the new workers alone, and back, by signals to the old master."""
    name = "nginx-replaced"
    churn = True  # of workers

    # nginx replaces its binary only where whom it was started by is gone.
    INIT = """
import ctypes, os, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
subprocess.run(sys.argv[1:], check=True)
while True:
    try: os.wait()
    except ChildProcessError: break
"""

    def command(self):
        _, *options = super().command()
        conf = os.path.join(self.folder, "nginx.conf")
        text = read(conf)
        with open(conf, "w") as f:
            f.write(text.replace("daemon off;", "daemon on;"))
        return ["/usr/bin/python3", "-c", self.INIT, shutil.which("nginx"), *options]

    def masters(self):
        """The old one first."""
        found = [p for p in descendants(self.pid) if "master process" in read(f"/proc/{p}/cmdline")]
        return sorted(found, key=lambda p: parent(p) != self.pid)

    def workers(self, master):
        return [p for p in descendants(master) if parent(p) == master and "worker process" in read(f"/proc/{p}/cmdline")]

    def have_workers(self, *counts):
        return [len(self.workers(m)) for m in self.masters()] == list(counts)

    def ready(self):
        wait_for(lambda: quietly(lambda: self.get("/page")), "nginx to answer", 20)
        wait_for(lambda: self.have_workers(2), "nginx's two workers", 10)
        os.kill(self.masters()[0], signal.SIGUSR2)
        wait_for(lambda: self.have_workers(2, 2), "two generations of nginx", 20)
        self.see()

    def see(self):
        self.inner_pids = sorted(filter(None, map(innermost_pid, descendants(self.pid))))
        self.remember()

    def check(self):
        super().check()
        self.settle()
        old, new = self.masters()
        os.kill(old, signal.SIGWINCH)
        wait_for(lambda: self.have_workers(0, 2), "the old workers to end", 20)
        served = {innermost_pid(p) for p in self.workers(new)}
        for _ in range(5):
            if (worker := int(self.get("/pid")[1])) not in served:
                raise Unwell(f"worker {worker} is none of the new ones, {served}")
        os.kill(old, signal.SIGHUP)
        wait_for(lambda: self.have_workers(2, 2), "the old master's workers to come back", 20)
        self.see()


def parent(pid):
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


class Postgres(Program):
    """A cluster of its own. Counters are only ever raised, and what was acknowledged is known here."""
    name = "postgres"
    exact_maps = False
    churn = True  # workers of its own come and go
    ignore = (r"status\.(SigBlk|SigPnd|ShdPnd)", r" fd \d+")
    port = 6392
    bin = "/usr/lib/postgresql/15/bin"
    user = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups")
    counters = 20

    def command(self):
        data = os.path.join(self.folder, "data")
        os.makedirs(data)
        subprocess.run(["chown", "postgres:postgres", data], check=True)
        os.chmod(data, 0o700)
        output = os.path.join(self.folder, "output")
        with open(output, "a"):
            os.chmod(output, 0o666)
        subprocess.run([*self.user, f"{self.bin}/initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync",
                        "--locale", "C"], check=True, cwd=self.folder, stdout=subprocess.DEVNULL)
        return [*self.user, f"{self.bin}/postgres", "-D", data, "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
                "-c", "unix_socket_directories=", "-c", "shared_buffers=16MB", "-c", "max_parallel_workers=2"]

    def sql(self, text):
        """Lines of the answer; Unwell if there is none."""
        def ask():
            return subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-X", "-A", "-t", "-q",
                                   "-v", "ON_ERROR_STOP=1", "-c", text, "postgres"], capture_output=True, text=True, timeout=30)
        answer = call_in(self.ns, ask)
        if answer.returncode != 0:
            raise Unwell(f"postgres: {answer.stderr.strip()}")
        return answer.stdout.split("\n")[:-1]

    def answers(self):
        try:
            return self.sql("select 1") == ["1"]
        except Unwell:
            self.alive_or_raise()
            return False

    def ready(self):
        wait_for(self.answers, "postgres to answer", 40)
        key, segment = read(os.path.join(self.folder, "data", "postmaster.pid")).splitlines()[6].split()
        with open(os.path.join(self.folder, "ipc"), "w") as f:
            f.write(f"-m {segment}\n")
        self.sql("create table counters (id int primary key, n int not null); insert into counters "
                 f"select i, 0 from generate_series(1, {self.counters}) i; create table filler as "
                 "select i, md5(i::text) as t from generate_series(1, 20000) i")
        self.acknowledged = 0
        self.raise_counters(5)
        self.started = self.sql("select pg_postmaster_start_time()")

    def raise_counters(self, times):
        for _ in range(times):
            self.sql("update counters set n = n + 1")
            self.acknowledged += 1

    def check(self):
        wait_for(self.answers, "postgres to answer", 20)
        if self.sql("select pg_postmaster_start_time()") != self.started:
            raise Unwell("another postgres answers")
        wanted = [f"{self.acknowledged}|{self.counters}"]
        if (found := self.sql("select n, count(*) from counters group by n")) != wanted:
            raise Unwell(f"counters are {found}, acknowledged were {wanted}")
        if self.sql("select count(*) from filler where t = md5(i::text)") != ["20000"]:
            raise Unwell("postgres's data changed")
        self.raise_counters(3)
        if self.sql("set force_parallel_mode = on; select sum(i) from filler") != [str(20000 * 20001 // 2)]:
            raise Unwell("postgres's parallel workers count wrongly")

    def settle(self):
        wait_for(lambda: not established(self.pid, self.port) and not any(
            "127.0.0.1(" in read(f"/proc/{p}/cmdline") for p in descendants(self.pid)), "connections to postgres to end", 10)


class Pipeline(Program):
    name = "pipeline"
    exact_maps = False
    churn = True
    ignore = (r"status\.(SigBlk|SigPnd|ShdPnd|SigIgn|SigCgt)", r" fd \d+", r" maps", r"auxv|cmdline|environ|exe|comm|stat\.")

    def command(self):
        self.checked = 0
        return ["bash", "-c", "i=0; while :; do echo $((++i)); sleep 0.01; done | sed -u 's/^/x /' | "
                              "while read -r x n; do echo $n >>out; done"]

    def numbers(self):
        return [int(x) for x in read(os.path.join(self.folder, "out")).split("\n")[:-1]]

    def ready(self):
        wait_for(lambda: len(self.numbers()) > 20, "the pipeline to flow", 20)

    def check(self):
        seen = len(self.numbers())
        wait_for(lambda: len(self.numbers()) > seen + 10, "the pipeline to flow on", 20)
        numbers = self.numbers()
        if numbers != list(range(1, len(numbers) + 1)):
            wrong = next(i for i, n in enumerate(numbers) if n != i + 1)
            raise Unwell(f"line {wrong + 1} of the pipeline's output is {numbers[wrong]}")


class Inotifywait(Program):
    """It tells of files that come into a folder and its subfolders."""
    name = "inotifywait"
    ignore = (r" fd 1$",)  # grows
    made = 0

    def command(self):
        self.watched = os.path.join(self.folder, "watched")
        os.makedirs(os.path.join(self.watched, "below"), exist_ok=True)
        return ["bash", "-c", f"exec inotifywait -m -r -e create --format '%w%f' {self.watched} >out 2>err"]

    def told(self):
        return read(os.path.join(self.folder, "out")).split("\n")

    def ready(self):
        wait_for(lambda: "Watches established" in read(os.path.join(self.folder, "err")), "the watches", 20)

    def check(self):
        for folder in (self.watched, os.path.join(self.watched, "below")):
            self.made += 1
            path = os.path.join(folder, f"file{self.made}")
            with open(path, "w"):
                pass
            wait_for(lambda path=path: path in self.told(), f"word of {path}", 10)


class Tmux(Program):
    """A terminal multiplexer with an editor in one window and a shell with jobs in another; used as a person would."""
    name = "tmux"
    exact_maps = False
    churn = True
    ignore = (r"status\.(SigBlk|SigPnd|ShdPnd)", r" fd \d+", r" maps")

    def command(self):
        self.words = []
        self.socket = os.path.join(self.folder, "socket")
        conf = os.path.join(self.folder, "tmux.conf")
        with open(conf, "w") as f:
            f.write("set -g exit-empty off\nset -g default-size 90x30\nset -g status off\nset -g default-shell /bin/bash\n")
        return ["tmux", "-D", "-S", self.socket, "-f", conf]

    def ask(self, *command):
        done = subprocess.run(["tmux", "-S", self.socket, *command], capture_output=True, text=True, timeout=20,
                              env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})
        if done.returncode != 0:
            raise Unwell(f"tmux {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def screen(self, window):
        return self.ask("capture-pane", "-p", "-t", window)

    def shows(self, window, text):
        try:
            return wait_for(lambda: s if text in (s := self.screen(window)) else None, f"{text!r} in {window}", 20)
        except Exception as e:
            raise Unwell(f"{e}: {window} shows\n{self.screen(window).rstrip()}") from None

    def type(self, window, *keys):
        self.ask("send-keys", "-t", window, *keys)

    def ready(self):
        wait_for(lambda: os.path.exists(self.socket), "tmux's socket", 20)
        self.ask("new-session", "-d", "-s", "main", "-n", "vim", "vim -N -u NONE -n -i NONE " + os.path.join(self.folder, "text"))
        self.ask("new-window", "-d", "-t", "main", "-n", "shell", "bash --norc --noprofile -i")
        self.type("main:vim", "i")
        self.shows("main:vim", "-- INSERT --")
        self.type("main:shell", "PS1='ready> '", "Enter", "sleep 10001 &", "Enter", "sleep 10002", "Enter")
        wait_for(lambda: any("sleep\00010002" in read(f"/proc/{p}/cmdline") for p in descendants(self.pid)), "the shell's job", 20)
        self.type("main:shell", "C-z")
        self.shows("main:shell", "Stopped")
        self.tty = self.ask("display-message", "-p", "-t", "main:shell", "#{pane_tty}").strip()
        self.remember()

    def check(self):
        word = f"word{len(self.words)}"
        self.words.append(word)
        self.type("main:vim", word, "Enter")
        self.shows("main:vim", word)
        lines = self.screen("main:vim").splitlines()
        if lines[:len(self.words)] != self.words:
            raise Unwell(f"vim shows {lines[:len(self.words) + 2]}, not {self.words}")
        self.type("main:shell", f"clear; tty; stty size; jobs; echo end of {word[4:]} $((1+1))", "Enter")
        lines = self.shows("main:shell", f"end of {word[4:]} 2").splitlines()
        if self.tty not in lines or lines[lines.index(self.tty) + 1] != "30 90":
            raise Unwell(f"the shell's terminal is not {self.tty}, of 30 90: {lines}")
        jobs = "\n".join(lines)
        if "Running                 sleep 10001" not in jobs or "Stopped                 sleep 10002" not in jobs:
            raise Unwell(f"the shell's jobs are others: {lines}")
        # A job in the foreground, interrupted by what is typed.
        self.type("main:shell", "clear; sleep 10003", "Enter")
        wait_for(lambda: any("sleep\00010003" in read(f"/proc/{p}/cmdline") for p in descendants(self.pid)), "the shell's job", 20)
        self.type("main:shell", "C-c")
        wait_for(lambda: not any("sleep\00010003" in read(f"/proc/{p}/cmdline") for p in descendants(self.pid)), "the job's end", 20)

    def settle(self):
        wait_for(lambda: "ready>" in self.screen("main:shell"), "a prompt", 20)


def quietly(function):
    """None instead of a connection error."""
    try:
        return function()
    except (OSError, redis.RedisError, http.client.HTTPException):
        return None


def established(pid, port):
    """True if the namespace of `pid` has an established connection at `port` (its server side)."""
    needle = f":{port:04X}"
    return any(parts[1].endswith(needle) and parts[3] in ("01", "08") for line in read(f"/proc/{pid}/net/tcp").splitlines()[1:]
               if len(parts := line.split()) > 3)

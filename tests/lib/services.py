"""Well-known services that are moved, with the settings they come with as far as a folder of their own allows."""
import base64
import json
import os
import shutil
import socket
import subprocess

from .netns import call_in
from .process import Deadline, descendants, read, wait_for
from .programs import Asked, Postgres, Program, Unwell
from .skip import Skip


class Service(Program):
    """Asked by a client program, in the network namespace where it is."""
    exact_maps = False
    churn = True  # of threads
    ignore = (r" fd \d+", r" maps", r"timers$", r"status\.(SigBlk|SigPnd|ShdPnd|SigIgn|SigCgt)", r"thread \d+")

    def ask(self, host, port, text, until=b"\n"):
        """What a TCP port answers to some bytes."""
        def talk():
            with socket.create_connection((host, port), timeout=10) as s:
                s.sendall(text)
                data = b""
                while until not in data:
                    more = s.recv(65536)
                    if not more:
                        break
                    data += more
                return data
        return call_in(self.ns, talk)


class MariaDb(Service):
    """It locks its files (POSIX). Without io_uring, which cannot be moved."""
    name = "mariadb"
    port = 6392

    def command(self):
        data = os.path.join(self.folder, "data")
        done = subprocess.run(["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal",
                               "--skip-test-db", "--user=nobody"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unwell("mariadb-install-db: " + done.stdout[-300:] + done.stderr[-500:])
        shutil.chown(data, "nobody", "nogroup")
        self.written = 0
        return ["mariadbd", "--no-defaults", f"--datadir={data}", "--user=nobody", f"--port={self.port}", "--bind-address=127.0.0.1",
                f"--socket={data}/sock", f"--pid-file={data}/pid", f"--log-error={data}/log", "--innodb-use-native-aio=0"]

    def sql(self, text):
        """What it answers; it may still be starting."""
        enter = ["nsenter", f"--net=/run/netns/{self.ns}"] if self.ns else []
        client = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{self.port}", "-uroot", "-N", "-B", "--protocol=tcp"]

        def answer():
            self.alive_or_raise()
            done = subprocess.run([*enter, *client], input=text, capture_output=True, text=True, timeout=20, check=False)
            return done.returncode == 0 and (done.stdout or " ")
        return wait_for(answer, "mariadbd to answer", 60)

    def ready(self):
        self.sql("create database t; create table t.n (i int primary key, v varchar(200)) engine=innodb;")

    def check(self):
        first = self.written + 1
        self.written += 20
        self.sql("".join(f"insert into t.n values ({i}, repeat('v', {i % 200}));" for i in range(first, self.written + 1)))
        found = self.sql("select count(*), sum(i), sum(length(v)) from t.n;").split()
        numbers = range(1, self.written + 1)
        wanted = [self.written, sum(numbers), sum(i % 200 for i in numbers)]
        if [int(x) for x in found] != wanted:
            raise Unwell(f"mariadb has {found}, not {wanted}")


class Writes:
    """A client in the tree writes all the time: 1, 2, 3 and so on into table `written`, and each into the file `acknowledged` when
    the server has said so."""

    def shell(self):
        """What starts the server and the client, with $folder."""
        raise NotImplementedError

    def counted(self):
        """How many numbers the table has, and the greatest."""
        raise NotImplementedError

    def launcher(self):
        file = os.path.join(self.folder, "launcher")
        with open(file, "w") as f:
            f.write(f"folder={self.folder}\n{self.shell()}wait\n")
        return ["/bin/sh", file]

    def acknowledged_number(self):
        lines = read(os.path.join(self.folder, "acknowledged")).split("\n")[:-1]
        return int(lines[-1]) if lines else 0

    def check_written(self):
        self.alive_or_raise()
        known = self.acknowledged_number()
        number, greatest = self.counted()
        if greatest < known or number != greatest:
            raise Unwell(f"{number} numbers up to {greatest} are there, and {known} was acknowledged")
        try:
            wait_for(lambda: self.acknowledged_number() > greatest + 1, "the client to go on", 20)
        except Deadline:
            there = [read(f"/proc/{p}/comm").strip() for p in descendants(self.pid)]
            raise Unwell(f"the client stays at {self.acknowledged_number()}; {there} are there: "
                         + read(os.path.join(self.folder, "output"))[-600:]) from None


class MariaDbWritten(Writes, MariaDb):
    name = "mariadb-written"

    def command(self):
        self.server = super().command()
        return self.launcher()

    def shell(self):
        data = os.path.join(self.folder, "data")
        client = f"mariadb --no-defaults -uroot -S{data}/sock"
        return f"""{" ".join(self.server)} &
until {client} -e 'select 1' >/dev/null 2>&1; do sleep 0.1; done
{client} -e 'create database w; create table w.written (i int primary key) engine=innodb'
seq 1 2000000 | sed 's/.*/insert into w.written values (&); select &;/' >$folder/writes
{client} -N -B --unbuffered <$folder/writes >$folder/acknowledged &
"""

    def counted(self):
        number, greatest = self.sql("select count(*), max(i) from w.written;").split()
        return int(number), int(greatest)

    def ready(self):
        wait_for(lambda: self.alive_or_raise() or self.acknowledged_number() > 20, "mariadb's client to write", 60)
        super().ready()

    def check(self):
        super().check()
        self.check_written()


class PostgresBench(Writes, Postgres):
    """With pgbench and its sums, too."""
    name = "postgres-bench"
    ignore = (*Postgres.ignore, r" cmdline$")  # where each server shows what it does just now

    def command(self):
        self.server = super().command()
        return self.launcher()

    def shell(self):
        client = f"-h {self.folder} -p {self.port} -U postgres"
        return f"""{" ".join(self.server)} -c unix_socket_directories=$folder &
until psql -X -q {client} -c 'create table written (i int primary key)' 2>/dev/null; do sleep 0.1; done
{self.bin}/pgbench {client} -i -q postgres || exit 1
seq 1 2000000 | sed 's/.*/insert into written values (&);\\n\\\\echo &/' >$folder/writes
stdbuf -oL psql -X -q {client} -v ON_ERROR_STOP=1 -f $folder/writes >$folder/acknowledged &
{self.bin}/pgbench {client} -n -c 4 -j 2 -T 600 postgres &
"""

    def counted(self):
        return tuple(int(x) for x in self.sql("select count(*), max(i) from written")[0].split("|"))

    def ready(self):
        wait_for(lambda: self.alive_or_raise() or self.acknowledged_number() > 20, "psql to write", 60)
        super().ready()

    def transactions(self):
        """Of pgbench; Unwell if its sums are not those of its history."""
        number, *sums = self.sql("select (select count(*) from pgbench_history), (select coalesce(sum(delta), 0) from pgbench_history), "
                                 "(select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), "
                                 "(select sum(tbalance) from pgbench_tellers)")[0].split("|")
        if len(set(sums)) != 1:
            raise Unwell(f"pgbench's sums differ: {sums}")
        return int(number)

    def check(self):
        super().check()
        self.check_written()
        before = self.transactions()
        wait_for(lambda: self.transactions() > before + 4, "pgbench to go on", 20)


class Etcd(Service):
    """It locks its files (flock(2), and by open file descriptions)."""
    name = "etcd"
    port = 6394

    def command(self):
        self.written = 0
        url, peers = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.port + 1}"
        return ["etcd", "--data-dir", os.path.join(self.folder, "data"), "--listen-client-urls", url, "--advertise-client-urls", url,
                "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"]

    def call(self, verb, **words):
        """Its JSON gateway; text goes as base64."""
        body = json.dumps({k: base64.b64encode(v.encode()).decode() for k, v in words.items()}).encode()
        request = f"POST /v3/kv/{verb} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

        def answer():
            self.alive_or_raise()
            try:
                head, _, text = self.ask("127.0.0.1", self.port, request, until=b"never\0").partition(b"\r\n\r\n")
            except OSError:
                return None
            return b" 200 " in head.split(b"\r\n")[0] and json.loads(text)
        return wait_for(answer, "etcd to answer", 40)

    def ready(self):
        self.call("put", key="first", value="1")

    def check(self):
        for _ in range(5):
            self.written += 1
            self.call("put", key=f"key{self.written}", value=f"value {self.written}")
        found = int(self.call("range", key="key", range_end="kez")["count"])
        if found != self.written:
            raise Unwell(f"etcd has {found} keys, not {self.written}")


class Cron(Service):
    """It locks its pid file. Its wait for the next minute goes on."""
    name = "cron"

    def command(self):
        return ["cron", "-f"]

    def ready(self):
        wait_for(lambda: read("/run/crond.pid").strip() == str(self.inner), "cron to lock its pid file", 10)

    def check(self):
        self.alive_or_raise()
        # It reads its tables (D) once a minute, and before its first wait.
        wait_for(lambda: read(f"/proc/{self.pid}/stat").rsplit(")", 1)[1].split()[0] == "S", "cron to sleep", 10)


class Haproxy(Service):
    name = "haproxy"
    port = 6396

    def command(self):
        conf = os.path.join(self.folder, "haproxy.cfg")
        with open(conf, "w") as f:
            f.write(f"""global
    stats socket {self.folder}/admin.sock mode 600 level admin
    maxconn 200
    nbthread 2
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend web
    bind 127.0.0.1:{self.port}
    http-request return status 200 content-type text/plain string "here"
backend spare
    server one 127.0.0.1:9 disabled
""")
        return ["haproxy", "-W", "-db", "-f", conf]

    def admin(self, text):
        def talk():
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(10)
                s.connect(os.path.join(self.folder, "admin.sock"))
                s.sendall(text.encode() + b"\n")
                data = b""
                while more := s.recv(65536):
                    data += more
                return data.decode()
        return call_in(self.ns, talk)

    def ready(self):
        def answers():
            try:
                return os.path.exists(os.path.join(self.folder, "admin.sock")) and self.get()
            except OSError:
                return None
        wait_for(answers, "haproxy to answer", 20)

    def get(self):
        return self.ask("127.0.0.1", self.port, b"GET / HTTP/1.0\r\n\r\n", b"here")

    def check(self):
        answer = self.get()
        if b" 200 " not in answer or b"here" not in answer:
            raise Unwell(f"haproxy answers {answer[:200]}")
        if "Name: HAProxy" not in self.admin("show info"):
            raise Unwell("haproxy's admin socket does not answer")


class Rsyslog(Service):
    name = "rsyslog"

    def command(self):
        self.written = 0
        conf = os.path.join(self.folder, "rsyslog.conf")
        with open(conf, "w") as f:
            f.write(f"""module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{self.folder}/log")
global(workDirectory="{self.folder}")
*.* action(type="omfile" file="{self.folder}/messages" template="RSYSLOG_TraditionalFileFormat")
""")
        return ["rsyslogd", "-n", "-f", conf, "-i", os.path.join(self.folder, "pid")]

    def say(self, text):
        def send():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.connect(os.path.join(self.folder, "log"))
                s.send(b"<13>" + text.encode())
        call_in(self.ns, send)

    def ready(self):
        wait_for(lambda: os.path.exists(os.path.join(self.folder, "log")), "rsyslogd's socket", 20)

    def check(self):
        for _ in range(5):
            self.written += 1
            self.say(f"test: message {self.written} of the test")
        def there():
            return [n for n in range(1, self.written + 1) if f"message {n} of" not in read(os.path.join(self.folder, "messages"))] == []
        wait_for(there, "rsyslogd to write the messages", 20)


class Java(Asked):
    """A JVM with a heap in use, threads and a timer; checks itself by the contract of the workloads."""
    name = "java"
    exact_maps = False
    churn = True
    ignore = Service.ignore

    SOURCE = """
import java.io.*; import java.nio.file.*; import java.util.*; import java.util.concurrent.*; import java.util.concurrent.atomic.*;
public class Moved {
  static Map<Integer, byte[]> map = new ConcurrentHashMap<>();
  static AtomicLong ticks = new AtomicLong(), made = new AtomicLong();
  public static void main(String[] a) throws Exception {
    for (int i = 0; i < 20000; i++) map.put(i, value(i));
    ScheduledExecutorService timer = Executors.newScheduledThreadPool(2);
    timer.scheduleAtFixedRate(ticks::incrementAndGet, 5, 5, TimeUnit.MILLISECONDS);
    for (int t = 0; t < 4; t++) { Thread w = new Thread(() -> { Random r = new Random(); for (;;) { int i = r.nextInt(20000);
      map.put(i, value(i)); made.incrementAndGet(); try { Thread.sleep(1); } catch (InterruptedException e) { return; } } }); w.setDaemon(true); w.start(); }
    Files.writeString(Path.of(a[0], "status"), "READY " + ProcessHandle.current().pid() + "\\n");
    String last = "";
    for (;;) { Thread.sleep(10); String token; try { token = Files.readString(Path.of(a[0], "check")); } catch (IOException e) { continue; }
      if (token.isEmpty() || token.equals(last)) continue; last = token; String bad = "";
      for (int i = 0; i < 20000; i++) if (!Arrays.equals(map.get(i), value(i))) bad += " value " + i;
      long t = ticks.get(), m = made.get(); Thread.sleep(100); if (ticks.get() == t) bad += " no ticks"; if (made.get() == m) bad += " no work";
      Path p = Path.of(a[0], "result.new"); Files.writeString(p, token + (bad.isEmpty() ? " PASS\\n" : " FAIL" + bad + "\\n"));
      Files.move(p, Path.of(a[0], "result"), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING); } }
  static byte[] value(int i) { byte[] b = new byte[100 + i % 400]; Arrays.fill(b, (byte) i); return b; }
}
"""

    def command(self):
        source = os.path.join(self.folder, "Moved.java")
        with open(source, "w") as f:
            f.write(self.SOURCE)
        return ["java", "-Xmx256m", source, self.folder]


# Of programs in Python that follow the contract of the workloads: `verify` gives what is wrong.
CONTRACT = r"""
import os, sys, time
folder = sys.argv[1]
def put(name, text):
    with open(os.path.join(folder, name + ".new"), "w") as f: f.write(text)
    os.rename(os.path.join(folder, name + ".new"), os.path.join(folder, name))
def serve(verify):
    put("status", f"READY {os.getpid()}\n"); last = ""
    while os.path.isdir(folder):
        time.sleep(0.01)
        try: token = open(os.path.join(folder, "check")).read()
        except OSError: continue
        if not token or token == last: continue
        last = token; bad = verify(token)
        put("result", f"{token} {'FAIL ' + bad if bad else 'PASS'}\n")
"""


class NamedPool(Asked):
    """Python's multiprocessing: a pool of workers with named semaphores and shared memory."""
    name = "named-pool"
    exact_maps = False
    churn = True
    ignore = Service.ignore

    SOURCE = CONTRACT + r"""
import multiprocessing as mp
from multiprocessing import shared_memory
def work(x): return sum(range(x)) + os.getpid() * 0
if __name__ == "__main__":
    mp.set_start_method("spawn")
    shm = shared_memory.SharedMemory(create=True, size=1 << 20); shm.buf[:4] = b"here"
    pool = mp.Pool(3); lock = mp.Lock(); queue = mp.Queue(); queue.put("waiting")
    pool.map(work, range(10))
    def verify(token):
        bad = []
        if pool.map(work, range(200)) != [sum(range(x)) for x in range(200)]: bad.append("pool")
        if bytes(shm.buf[:4]) != b"here": bad.append("shared memory")
        with lock: pass
        if queue.get(timeout=5) != "waiting": bad.append("queue")
        queue.put("waiting")
        return " ".join(bad)
    serve(verify)
"""

    def command(self):
        source = os.path.join(self.folder, "pool.py")
        with open(source, "w") as f:
            f.write(self.SOURCE)
        return ["/usr/bin/python3", source, self.folder]


class Sshd(Asked):
    """A daemon with a session: a shell on a terminal of its own, and the client whose session it is. sshd notes its logins in the
    machine's wtmp and lastlog."""
    name = "sshd"
    exact_maps = False
    churn = True  # each check opens one more session
    ignore = Service.ignore
    port = 6398

    SOURCE = CONTRACT + r"""
import select, subprocess
port, key = sys.argv[2], os.path.join(folder, "key")
for name in (key, key + ".host"):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True)
os.rename(key + ".pub", key + ".allowed")
put("sshd_config", f"Port {port}\nListenAddress 127.0.0.1\nHostKey {key}.host\nPidFile {folder}/pid\nUsePAM no\nStrictModes no\n"
    f"AuthorizedKeysFile {key}.allowed\nPermitRootLogin yes\n")
daemon = subprocess.Popen(["/usr/sbin/sshd", "-D", "-E", os.path.join(folder, "log"), "-f", os.path.join(folder, "sshd_config")])
client = ["ssh", "-F", "none", "-p", port, "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
          "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "ConnectionAttempts=20", "root@127.0.0.1"]
done = subprocess.run([*client, "true"], capture_output=True, text=True)  # which waits for the daemon to listen
if done.returncode != 0:
    sys.exit(f"no session: {done.stderr} {open(os.path.join(folder, 'log')).read()}")
session = subprocess.Popen([*client[:1], "-tt", *client[1:], "bash --norc --noprofile -i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
shown = b""
def shows(text, seconds=20):
    global shown
    end = time.monotonic() + seconds
    while text not in shown and time.monotonic() < end:
        if select.select([session.stdout], [], [], 0.2)[0]: shown += os.read(session.stdout.fileno(), 65536)
    found = text in shown
    if found: shown = shown.split(text, 1)[1]
    return found
def type(line):
    session.stdin.write(line.encode() + b"\n"); session.stdin.flush()
type("unset HISTFILE; stty -echo cols 71; count=0; sleep 10004 & echo r''eady")
if not shows(b"ready"): sys.exit(f"the session does not begin, but says {shown}")
checks = 0
def verify(token):
    global checks
    checks += 1
    type(f"count=$((count+1)); echo counted $count for {token}; stty size; jobs %1")
    if not shows(f"counted {checks} for {token}".encode()): return f"the session does not answer, but {shown[-200:]}"
    if not shows(b" 71") or not shows(b"Running"): return f"the session's terminal or job is another: {shown[-200:]}"
    done = subprocess.run([*client, "echo", "another", token], capture_output=True)
    if done.stdout.decode().strip() != f"another {token}": return f"no other session: {done.stderr[-300:]}"
serve(verify)
"""

    def command(self):
        fields = next((line.split(":") for line in read("/etc/shadow").splitlines() if line.startswith("root:")), ["root", "!"])
        if fields[1].startswith("!"):
            raise Skip("root's account is locked, which sshd lets nobody into; passwd --unlock root")
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        source = os.path.join(self.folder, "session.py")
        with open(source, "w") as f:
            f.write(self.SOURCE)
        return ["/usr/bin/python3", source, self.folder, str(self.port)]

    def settle(self):
        def daemons():
            return [p for p in descendants(self.pid) if read(f"/proc/{p}/comm").strip() == "sshd"]
        wait_for(lambda: len(daemons()) == 2, "other sessions to end", 10)


class LogReader:
    """Whoever has /dev/log for the moment: there is one on this machine."""
    PATH = "/dev/log"

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        wait_for(self.bind, f"{self.PATH} to be free", 90)

    def bind(self):
        try:
            self.socket.bind(self.PATH)
        except OSError:
            return False
        self.mine = os.lstat(self.PATH).st_ino
        return True

    def lines(self):
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return found

    def close(self):
        self.socket.close()
        if os.path.lexists(self.PATH) and os.lstat(self.PATH).st_ino == self.mine:
            os.unlink(self.PATH)


class Logs(Asked):
    """A program that is connected to the system's log, as whoever called syslog(3) is."""
    name = "logs"
    exact_maps = False
    ignore = Service.ignore

    SOURCE = CONTRACT + r"""
import socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); log.connect("/dev/log")
def verify(token):
    try: log.send(b"<13>" + token.encode())
    except OSError as e: return str(e)
serve(verify)
"""

    def command(self):
        self.log = LogReader()
        source = os.path.join(self.folder, "logs.py")
        with open(source, "w") as f:
            f.write(self.SOURCE)
        return ["/usr/bin/python3", source, self.folder]

    def check(self):
        super().check()
        token = f"<13>{os.getpid()}-{self.tokens}"
        wait_for(lambda: token in self.log.lines(), "the message in the system's log", 10)

    def end(self):
        super().end()
        self.log.close()

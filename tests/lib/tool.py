"""The commands under test, as functions."""
import glob
import json
import os
import uuid

from .process import kill_tree, read, run, spawn, wait_for


class Failed(Exception):
    """A command under test did not do what it should."""


def tail(path, lines=15):
    return "\n".join(read(path).splitlines()[-lines:])


class Keys:
    """What `migrate keys` wrote, found by what is in the files, so that their names are the command's business."""

    def __init__(self, tool, folder, names):
        code, out = run([tool, "keys", "--dir", folder, *names], timeout=60)
        if code != 0:
            raise Failed(f"migrate keys exited {code}: {out.strip()[-500:]}")
        self.folder = folder
        self.files = [p for p in glob.glob(f"{folder}/**", recursive=True) if os.path.isfile(p)]
        self.ca = self._find("ca", "BEGIN CERTIFICATE")

    def _find(self, name, marker):
        for p in sorted(self.files, key=len):
            if (os.path.basename(p).startswith(name) or f"/{name}/" in p) and marker in read(p):
                return p
        raise Failed(f"migrate keys wrote no '{marker}' for {name}: {self.files}")

    def options(self, name):
        return ["--cacert", self.ca, "--cert", self._find(name, "BEGIN CERTIFICATE"), "--key", self._find(name, "PRIVATE KEY")]


class Tool:
    """`binary`: the migrate program; `folder`: where logs, images and state go."""

    def __init__(self, binary, folder, send_args=(), receive_args=()):
        self.binary = binary
        self.folder = folder
        self.log = os.path.join(folder, "commands.log")
        self.send_args = list(send_args)
        self.receive_args = list(receive_args)
        # Two hosts on one machine are not to be told apart by this alone.
        self.boot = {host: str(uuid.uuid4()) for host in ("source", "destination")}

    def environment(self, host, env=None):
        return {"MIGRATE_FAKE_BOOT_ID": self.boot[host], **(env or {})}

    def resolve_command(self, network, host, other, keys, *options, pid=None):
        """(command, prefix) of `migrate resolve` on `host`."""
        return ([self.binary, "resolve", *keys.options(host), "--tls-name", other, "--state-dir",
                 os.path.join(self.folder, f"state-{host}"), *options],
                [*network.enter(host)] + ([f"--time=/proc/{pid}/ns/time"] if pid else []))

    def resolve(self, network, host, other, keys, *options, pid=None):
        """Gives (exit code, output)."""
        command, prefix = self.resolve_command(network, host, other, keys, *options, pid=pid)
        return run(command, prefix=prefix, log=self.log, timeout=60, env=self.environment(host))

    def dump(self, pid, images, *options, expect=0, timeout=60):
        os.makedirs(images, exist_ok=True)
        code, out = run([self.binary, "dump", "-t", pid, "-D", images, "-v4", "-o", "dump.log", *options], log=self.log,
                        timeout=timeout)
        if code != expect:
            raise Failed(f"dump exited {code}: {out.strip()[-400:]}\n{tail(images + '/dump.log')}")
        return out

    def lazy_pages(self, images):
        """Starts the daemon; returns when it listens."""
        ready, told = os.pipe()
        try:
            daemon = spawn([self.binary, "lazy-pages", "-D", images, "-v4", "-o", "lazy.log", "--status-fd", told],
                           log=self.log, pass_fds=(told,))
        finally:
            os.close(told)
        with os.fdopen(ready, "rb") as status:
            if status.read(1) != b"\0":
                raise Failed(f"lazy-pages does not listen: {tail(images + '/lazy.log')}")
        return daemon

    def end_lazy_pages(self, daemon, images):
        """It ends by itself, when all pages have come."""
        try:
            wait_for(lambda: daemon.poll() is not None, "the lazy-pages daemon to end", 30)
        finally:
            if daemon.poll() is None:
                kill_tree(daemon.pid)
                daemon.wait()
        if daemon.returncode != 0:
            raise Failed(f"lazy-pages exited {daemon.returncode}: {tail(images + '/lazy.log')}")

    def restore(self, images, *options, timeout=60):
        pidfile = os.path.join(images, "pidfile")
        if os.path.exists(pidfile):
            os.unlink(pidfile)
        code, out = run([self.binary, "restore", "-D", images, "-d", "-v4", "-o", "restore.log", "--pidfile", pidfile, *options],
                        log=self.log, timeout=timeout)
        if code != 0:
            raise Failed(f"restore exited {code}: {out.strip()[-400:]}\n{tail(images + '/restore.log')}")
        text = read(pidfile).strip()
        if not text.isdigit():
            raise Failed(f"restore wrote no pid to its pidfile: {text!r}")
        return int(text)

    def receive(self, network, host, keys, port=7400, env=None, options=(), prefix=(), once=True, log=None):
        """Starts a destination on `host`, through `prefix`; returns once it listens."""
        log = log or os.path.join(self.folder, "receive.log")
        p = spawn([self.binary, "receive", "--listen", f"{network.address(host)}:{port}", *(["--once"] if once else []), *keys.options(host),
                   "--state-dir", os.path.join(self.folder, f"state-{host}"), *self.receive_args, *options],
                  log=log, prefix=[*network.enter(host), *prefix], env=self.environment(host, env))
        needle = f":{port:04X} "

        def listening():
            if p.poll() is not None:
                raise Failed(f"receive exited {p.returncode} before it listened:\n{tail(log)}")
            return any(needle in line and " 0A " in line for line in read(f"/proc/{p.pid}/net/tcp").splitlines()[1:])
        wait_for(listening, "migrate receive to listen", 15)
        return p

    def send(self, network, host, to, keys, pid, port=7400, env=None, options=(), timeout=120, wait=True, prefix=()):
        """Moves `pid` from `host` to `to`. Gives (exit code, events, output); with wait=False the process."""
        prefix = [*network.enter(host), f"--time=/proc/{pid}/ns/time", *prefix]
        command = [self.binary, "send", f"{network.address(to)}:{port}", f"pid:{pid}", *keys.options(host), "--tls-name", to,
                   "--state-dir", os.path.join(self.folder, f"state-{host}"), "--json",
                   # The driver is the parent of what it moves, and knows.
                   "--parent-may-notice", *self.send_args, *options]
        env = self.environment(host, env)
        if not wait:
            return spawn(command, log=os.path.join(self.folder, "send.log"), prefix=prefix, env=env)
        code, out = run(command, prefix=prefix, env=env, log=self.log, timeout=timeout)
        return code, events(out), out


def events(text):
    """The JSON objects among the lines of `text`."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
    return found

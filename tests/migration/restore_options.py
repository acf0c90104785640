#!/usr/bin/env python3
"""Options of `migrate restore` that say where the tree comes to life.

    restore_options.py [--build DIR] [--only REGEX] [--list]"""
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from lib import suite, tool  # noqa: E402
from lib.process import exists, kill_tree, read, run, spawn, stat_fields, wait_for  # noqa: E402
from lib.suite import expect  # noqa: E402

# In a mount namespace of its own: a root folder that is another one than "/", with everything of "/" in it.
OTHER_ROOT = """set -e
mount -t tmpfs none "$1"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$1/"
  elif [ -d "$entry" ]; then mkdir "$1$entry"; mount --rbind "$entry" "$1$entry"
  fi
done
root=$1
shift
exec "$@" --root "$root"
"""


class Dumped:
    """A workload that a dump has killed."""

    def __init__(self, context, folder, name):
        self.tool = tool.Tool(context.binary, folder)
        self.images = os.path.join(folder, "images")
        self.pidfile = os.path.join(folder, "pidfile")
        self.program = cases.start(context, name, os.path.join(folder, "program"))

    def __enter__(self):
        try:
            self.program.ready()
            self.program.check()
            self.program.settle()
            self.tool.dump(self.program.pid, self.images, *self.program.dump_options)
            self.program.reap_old()
            wait_for(lambda: not exists(self.program.pid), "the dumped tree to be gone", 10)
        except BaseException:
            self.program.end()
            raise
        return self

    def __exit__(self, *_):
        self.program.end()

    def command(self, *options):
        return [self.tool.binary, "restore", "-D", self.images, "-d", "-o", "restore.log", "--pidfile", self.pidfile, *options]

    def lives(self):
        self.program.moved_to(int(read(self.pidfile)), None)
        self.program.check()
        return self.program.pid


def other_root(name):
    def case(context, folder):
        root = os.path.join(folder, "root")
        os.mkdir(root)
        with Dumped(context, folder, name) as dumped:
            code, out = run(["unshare", "-m", "sh", "-c", OTHER_ROOT, "sh", root, *dumped.command()], log=dumped.tool.log)
            expect(code == 0, f"restore --root exited {code}: {out.strip()[-500:]}")
            pid = dumped.lives()
            device = os.stat(f"/proc/{pid}/root").st_dev
            expect(device != os.stat("/").st_dev, "its root folder is ours")
            expect(device == os.stat(f"/proc/{pid}/root/.").st_dev and os.path.isdir(f"/proc/{pid}/root/{folder}"),
                   "its root folder is not the one that was named")
    return case


def sibling(context, folder):
    """The root's parent is then the process that called `migrate restore`."""
    with Dumped(context, folder, "clocks") as dumped:
        script = '"$@" && touch "$0" && exec sleep 600'
        done = os.path.join(folder, "done")
        parent = spawn(["sh", "-c", script, done, *dumped.command("--restore-sibling")], log=os.path.join(folder, "output"))
        try:
            wait_for(lambda: os.path.exists(done) or parent.poll() is not None, "restore --restore-sibling", 60)
            expect(os.path.exists(done), f"restore failed: {read(os.path.join(folder, 'output'))[-500:]}")
            pid = dumped.lives()
            expect(int(stat_fields(pid)[1]) == parent.pid, f"its parent is {stat_fields(pid)[1]}, not {parent.pid}")
        finally:
            parent.kill()
            parent.wait()


def lazy_alone(context, folder):
    """--lazy-pages without a daemon starts nothing."""
    with Dumped(context, folder, "clocks") as dumped:
        code, out = run(dumped.command("--lazy-pages"), log=dumped.tool.log)
        log = read(os.path.join(dumped.images, "restore.log")) + out
        expect(code == 2, f"restore exited {code}: {log[-500:]}")
        expect("no lazy-pages daemon listens on" in log and "start `migrate lazy-pages`" in log, f"it says: {log[-500:]}")
        expect(not exists(dumped.program.pid), "something was started")
        expect(run(dumped.command(), log=dumped.tool.log)[0] == 0, "it cannot be restored any more")
        dumped.lives()


def lazy_twice(context, folder):
    """Two daemons do not share a socket; one that a killed daemon left is replaced."""
    t = tool.Tool(context.binary, folder)
    images = os.path.join(folder, "images")
    os.mkdir(images)
    command = [context.binary, "lazy-pages", "-D", images]
    first = t.lazy_pages(images)
    try:
        code, out = run(command, log=t.log)
        expect(code == 2 and "another lazy-pages daemon listens on" in out, f"the second exited {code}: {out[-500:]}")
        expect(first.poll() is None, "the first has ended")
    finally:
        first.kill()
        first.wait()
    second = t.lazy_pages(images)
    second.terminate()
    expect(second.wait(timeout=10) != 0, "it waits no more, without a restore")


def lazy_lost(context, folder):
    """Pages that cannot be read are never zeros: who touches one gets SIGBUS."""
    with Dumped(context, folder, "memory") as dumped:
        daemon = dumped.tool.lazy_pages(dumped.images)
        script = os.path.join(folder, "script")
        with open(script, "w") as f:
            f.write(f'#!/bin/sh\nif [ "$CRTOOLS_SCRIPT_ACTION" = pre-resume ]; then truncate -s 0 {dumped.images}/pages-*.img; fi\n')
        os.chmod(script, 0o755)
        try:
            code, out = run(dumped.command("--lazy-pages", "--action-script", script), log=dumped.tool.log)
            expect(code == 0, f"restore exited {code}: {out[-500:]}")
            wait_for(lambda: daemon.poll() is not None, "the daemon to give up", 20)
            log = read(os.path.join(dumped.images, "lazy.log"))
            expect(daemon.returncode == 1 and "pages are lost" in log, f"it exited {daemon.returncode}: {log[-500:]}")
            wait_for(lambda: not exists(dumped.program.pid), "the program to touch what is lost", 20)
            result = read(os.path.join(dumped.program.folder, "result"))
            expect("FAIL" not in result, f"it read something else: {result}")
        finally:
            if daemon.poll() is None:
                kill_tree(daemon.pid)
                daemon.wait()


def mapped_file_shorter(context, folder):
    """What is mapped beyond the end of a file would kill the copy (SIGBUS), also where the program writes to it."""
    with Dumped(context, folder, "lost_paths") as dumped:
        path = os.path.join(dumped.program.folder, "new")
        content = read(path)
        os.truncate(path, 0)
        code, out = run(dumped.command(), log=dumped.tool.log)
        log = read(os.path.join(dumped.images, "restore.log")) + out
        expect(code != 0 and f"has 0 bytes, but {len(content)} where the program was" in log, f"restore exited {code}: {log[-500:]}")
        with open(path, "w") as f:
            f.write(content)
        expect(run(dumped.command(), log=dumped.tool.log)[0] == 0, "it cannot be restored any more")
        dumped.lives()


CASES = {"lazy/alone": lazy_alone, "lazy/twice": lazy_twice, "lazy/lost": lazy_lost,
         "root/files": other_root("files"), "root/tree": other_root("tree"), "sibling": sibling, "mapped-file-shorter": mapped_file_shorter}


if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mrestore-"))

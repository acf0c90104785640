"""A program that holds one thing which cannot be moved, and counts meanwhile.

    stubborn.py FOLDER KIND [ARGUMENT...]

Writes "READY PID DETAIL" to FOLDER/status and a growing number to FOLDER/beat; ends when FOLDER is gone."""
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534
FOLDER, KIND, ARGUMENTS = sys.argv[1], sys.argv[2], sys.argv[3:]
SYS_IO_URING_SETUP, SYS_SECCOMP, SYS_PIDFD_OPEN, SYS_USERFAULTFD = 425, 317, 434, 323
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446


def checked(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def tcp():
    """A connection with itself would be inside the tree: the driver accepts."""
    s = socket.create_connection((ARGUMENTS[0], int(ARGUMENTS[1])))
    return s, s.fileno()


def tcp_backlog():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen(5)
    with open(os.path.join(FOLDER, "port"), "w") as f:
        f.write(str(s.getsockname()[1]))
    return s, s.fileno()


def listener():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("0.0.0.0", int(ARGUMENTS[0])))
    s.listen(5)
    return s, s.fileno()


def corked():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(("127.0.0.1", 9))
    s.setsockopt(socket.IPPROTO_UDP, 1, 1)  # UDP_CORK
    s.send(b"x")
    return s, s.fileno()


def ended_unread():
    server = socket.create_server(("127.0.0.1", 0))
    s = socket.create_connection(server.getsockname())
    other, _ = server.accept()
    other.send(b"left")
    time.sleep(0.1)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.close()
    server.close()
    return s, s.fileno()


def lost_socket_name():
    """Another folder has its only name, and it was not renamed there."""
    os.mkdir(os.path.join(FOLDER, "elsewhere"))
    s = socket.socket(socket.AF_UNIX)
    s.bind(os.path.join(FOLDER, "name"))
    s.listen(1)
    os.link(os.path.join(FOLDER, "name"), os.path.join(FOLDER, "elsewhere", "name"))
    os.unlink(os.path.join(FOLDER, "name"))
    return s, s.fileno()


def netlink():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)  # generic
    return s, s.fileno()


def packet():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    return s, s.fileno()


def mptcp():
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError as e:
        return str(e)


def mptcp_listener():
    s = mptcp()
    if isinstance(s, str):
        return "impossible", f"no MPTCP socket can be made: {s}"
    s.bind(("127.0.0.1", 0))
    s.listen(1)
    return s, s.fileno()


def mptcp_connection():
    s, fd = mptcp_listener()
    if s == "impossible":
        return s, fd
    client = mptcp()
    client.connect(s.getsockname())
    server, _ = s.accept()
    s.close()
    server.close()
    return client, client.fileno()


def raw_ip():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    become_nobody()
    return s, s.fileno()


def bound_to_interface(gone=False):
    """One that this host alone has; `gone`: no more."""
    name = f"mig{os.getpid() % 100000}"
    made = subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", name + "p"], capture_output=True, text=True)
    if made.returncode != 0:
        return "impossible", f"no network interface can be made: {made.stderr.strip()}"
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
    if gone:
        subprocess.run(["ip", "link", "del", name], check=True)
        return s, s.fileno()
    return s, name


def interface_gone():
    return bound_to_interface(gone=True)


def unix_from_another_network():
    """Who connects is in another network namespace, and none of the tree."""
    path = os.path.join(FOLDER, "listener")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.setsid()
            checked(LIBC.unshare(0x40000000), "unshare(2)")  # CLONE_NEWNET
            s = socket.socket(socket.AF_UNIX)
            s.connect(path)
            while os.path.isdir(FOLDER) and not select.select([s], [], [], 0.1)[0]:
                pass
        os._exit(0)
    os.waitpid(middle, 0)
    connection, _ = listener.accept()
    listener.close()
    os.unlink(path)
    return connection, connection.fileno()


def unix_outside():
    s = socket.socket(socket.AF_UNIX)
    s.connect(ARGUMENTS[0])
    return s, s.fileno()


def epoll_on_its_way():
    a, b = socket.socketpair()
    one = select.epoll()
    socket.send_fds(a, [b"x"], [one.fileno()])
    one.close()
    return (a, b), b.fileno()


def not_accepted():
    """A connection that stays in the queue of its listening socket, with data."""
    s, c = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    s.bind(os.path.join(FOLDER, "socket"))
    s.listen()
    c.connect(s.getsockname())
    c.send(b"x")
    return (s, c), s.fileno()


def kept_outside(fd):
    """A process that is none of the tree has it, and no other descriptor."""
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.setsid()
            os.dup2(fd, 0)
            os.closerange(1, 1000)
            while os.path.isdir(FOLDER):
                time.sleep(0.02)
        os._exit(0)
    os.waitpid(middle, 0)


def epoll_of_closed(reuse=False):
    """What keeps the file, and so the entry, is not in the tree."""
    epoll, number = select.epoll(), LIBC.eventfd(0, 0)
    epoll.register(number)
    kept_outside(number)
    os.close(number)
    held = [os.open("/dev/null", os.O_RDONLY)] if reuse else []
    if reuse and held != [number]:
        return "impossible", "the number was not used again"
    return (epoll, held), epoll.fileno()


def epoll_of_another():
    return epoll_of_closed(reuse=True)


def watching():
    """What looks like that, and is none: the child has what the parent closed, and all is taken but some bytes."""
    epoll, pipe, (a, b) = select.epoll(), os.pipe(), socket.socketpair()
    for fd in (pipe[0], a.fileno(), LIBC.eventfd(0, 0), LIBC.timerfd_create(1, 0)):
        epoll.register(fd)
    child = os.fork()
    if child == 0:
        while os.path.isdir(FOLDER):
            time.sleep(0.02)
        os._exit(0)
    b.send(b"some bytes")
    s, c = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    s.bind(os.path.join(FOLDER, "socket"))
    s.listen()
    c.connect(s.getsockname())
    accepted = s.accept()
    os.close(pipe[0])  # last: the number is not used again
    return (epoll, pipe, a, b, s, c, accepted), child


def inotify():
    """With an event that is never read."""
    fd = checked(LIBC.inotify_init1(os.O_CLOEXEC), "inotify_init1")
    checked(LIBC.inotify_add_watch(fd, FOLDER.encode(), 0x100), "inotify_add_watch")
    with open(os.path.join(FOLDER, "new"), "w"):
        return None, fd


def fanotify():
    return None, checked(LIBC.fanotify_init(0, os.O_RDONLY), "fanotify_init")


def notified():
    """Of a folder, by a signal."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(FOLDER, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
    return None, fd


def terminal():
    """Its other end is held outside of the tree."""
    master, slave = os.openpty()
    user = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(slave)
            while os.path.exists(f"/proc/{user}"):
                time.sleep(0.05)
        os._exit(0)
    os.wait()
    os.close(master)
    return None, slave


def terminal_with_guest():
    """The master is ours, and a process outside of the tree has the slave."""
    master, slave = os.openpty()
    user = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(master)
            while os.path.exists(f"/proc/{user}"):
                time.sleep(0.05)
        os._exit(0)
    os.wait()
    return None, master


def stopped_terminal():
    """Nothing can be written to it until somebody types ^Q."""
    master, slave = os.openpty()
    os.write(master, b"\x13")
    while select.select([], [slave], [], 0)[1]:
        time.sleep(0.001)
    return None, master


def io_uring():
    fd = LIBC.syscall(SYS_IO_URING_SETUP, 4, ctypes.create_string_buffer(120))
    if fd < 0:
        return "impossible", f"io_uring_setup(2): {os.strerror(ctypes.get_errno())}"
    return None, fd


def userfaultfd():
    fd = LIBC.syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
    if fd < 0:
        return "impossible", f"userfaultfd(2): {os.strerror(ctypes.get_errno())}"
    return None, fd


def pidfd():
    """Of a process that is not in the tree."""
    return None, checked(LIBC.syscall(SYS_PIDFD_OPEN, 1, 0), "pidfd_open")


def thread_pidfd():
    """Of a thread that is not the first of its task (PIDFD_THREAD, Linux 6.9)."""
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    fd = LIBC.syscall(SYS_PIDFD_OPEN, thread.native_id, os.O_EXCL)
    if fd < 0:
        return "impossible", "pidfd_open(2) takes no threads"
    return thread, fd


def device():
    for path in ("/dev/kmsg", "/dev/fuse", "/dev/net/tun", "/dev/mem"):
        try:
            return None, os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
    return "impossible", "no device node can be opened here"


def flock():
    f = open(os.path.join(FOLDER, "locked"), "w")
    fcntl.flock(f, fcntl.LOCK_EX)
    return f, f.fileno()


def posix_lock():
    f = open(os.path.join(FOLDER, "locked"), "w")
    fcntl.lockf(f, fcntl.LOCK_EX)
    return f, f.fileno()


def message_queue():
    name = f"/migrate-test-{os.getpid()}".encode()
    fd = checked(LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None), "mq_open")
    checked(LIBC.mq_unlink(name), "mq_unlink")
    return fd, fd


def lease():
    f = open(os.path.join(FOLDER, "locked"), "w")
    fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return f, f.fileno()


def sysv_shm():
    """ARGUMENTS: the number of a segment."""
    LIBC.shmat.restype = ctypes.c_void_p
    return LIBC.shmat(int(ARGUMENTS[0]), None, 0), int(ARGUMENTS[0])


def sysv_queue():
    """Nobody has used it yet, so that nothing tells whose it is."""
    identifier = checked(LIBC.msgget(0, 0o1600), "msgget")
    with open(os.path.join(FOLDER, "ipc"), "w") as f:
        f.write(f"-q {identifier}\n")
    return None, identifier


def outside_pipe():
    """ARGUMENTS: the number of an inherited descriptor."""
    return None, int(ARGUMENTS[0])


def seccomp():
    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
    allow = struct.pack("HBBI", 0x06, 0, 0, 0x7fff0000)
    checked(LIBC.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    checked(LIBC.prctl(22, 2, ctypes.byref(Filter(1, allow)), 0, 0), "PR_SET_SECCOMP")
    return None, os.getpid()


def deleted_big_file():
    f = open(os.path.join(FOLDER, "big"), "w+b")
    f.write(os.urandom(1 << 20) * 3)
    f.flush()
    os.unlink(f.name)
    return f, f.fileno()


def writable_file():
    f = open(ARGUMENTS[0], "a")
    return f, f.fileno()


def mapped_file():
    import mmap
    f = open(ARGUMENTS[0], "rb")
    return mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE), f.fileno()


def own_thread_files():
    """A thread with a descriptor table of its own."""
    result = []

    def run():
        result.append(LIBC.unshare(0x400))
        while True:
            time.sleep(1)
    threading.Thread(target=run, daemon=True).start()
    while not result:
        time.sleep(0.01)
    return None, os.getpid()


def zombie_root():
    os._exit(0)


def shared_memory_outside():
    """The driver maps the same memfd."""
    import mmap
    fd = int(ARGUMENTS[0])
    return mmap.mmap(fd, 4096), fd


def landlock():
    """A domain, which nothing in /proc tells."""
    rules = LIBC.syscall(SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(ctypes.c_uint64(1)), 8, 0)
    if rules < 0:
        return "impossible", f"landlock_create_ruleset(2): {os.strerror(ctypes.get_errno())}"
    checked(LIBC.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    checked(LIBC.syscall(SYS_LANDLOCK_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)
    return None, 0


def user_dispatch():
    """System calls that the program would get itself, were the selector set."""
    selector = ctypes.c_char(0)
    if LIBC.prctl(59, 1, 0, 0, ctypes.byref(selector)) < 0:
        return "impossible", f"PR_SET_SYSCALL_USER_DISPATCH: {os.strerror(ctypes.get_errno())}"
    return selector, 0


def address_space_limit():
    import resource
    pages = int(open("/proc/self/statm").read().split()[0]) + 1
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096, pages * 4096))
    return None, pages * 4


def plain():
    return None, 0


def thread_file():
    """An open file of /proc that is of another thread than the first."""
    tids = []

    def run():
        tids.append(threading.get_native_id())
        while True:
            time.sleep(1)
    threading.Thread(target=run, daemon=True).start()
    while not tids:
        time.sleep(0.01)
    fd = os.open(f"/proc/self/task/{tids[0]}/status", os.O_RDONLY)
    return fd, fd


def become_nobody(work_folder="/"):
    """Whose folder, and what is in it, is its own."""
    os.chmod(os.path.dirname(FOLDER), 0o711)
    for path in (FOLDER, *(os.path.join(FOLDER, name) for name in ("beat", "output"))):
        os.chown(path, NOBODY, NOBODY)
    os.chdir(work_folder)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def favoured():
    """What root gave to a user who could not take it."""
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    become_nobody()
    return None, 0


def nobody():
    """A user with what every user can have."""
    become_nobody()
    kept = [open(os.path.join(FOLDER, "own"), "w+"), open("/etc/hostname"), os.open("/dev/null", os.O_RDWR), os.pipe(), select.epoll(),
            os.open("/proc/uptime", os.O_RDONLY)]
    deleted = open(os.path.join(FOLDER, "deleted"), "w+")
    os.unlink(deleted.name)
    named, other = socket.socket(socket.AF_UNIX), socket.socket()
    named.bind(os.path.join(FOLDER, "socket"))
    named.listen()
    kept.append(socket.socketpair())
    other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    return (kept, deleted, named, other), 0


def roots_file():
    """Root opened it before it became somebody who may not, in a folder that is not root's alone."""
    f = open(os.path.join(FOLDER, "private"), "w+", opener=lambda path, flags: os.open(path, flags, 0o600))
    become_nobody()
    return f, f.fileno()


def direct_io():
    """Which writes memory unseen; a dump takes it."""
    try:
        f = os.open(os.path.join(FOLDER, "direct"), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError as e:
        return "impossible", f"O_DIRECT: {e}"
    return f, f


def removed_name():
    """A file that is open under a name which was removed, and has another in another folder."""
    f = open(os.path.join(FOLDER, "removed"), "w+")
    f.truncate(4096)
    os.mkdir(os.path.join(FOLDER, "elsewhere"))
    os.link(f.name, os.path.join(FOLDER, "elsewhere", "other"))
    os.unlink(f.name)
    return f, f.fileno()


def removed_name_mapped():
    import mmap
    f, _ = removed_name()
    mapped = mmap.mmap(f.fileno(), 4096)
    f.close()
    return mapped, 0


def ebpf_filter():
    instructions = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xb7, 0, 0, 0, 0x95, 0, 0, 0))  # r0 = 0; exit
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(struct.pack("<IIQQ", 1, 2, ctypes.addressof(instructions), ctypes.addressof(licence)), 128)
    program = LIBC.syscall(321, 5, attributes, 128)  # bpf(BPF_PROG_LOAD) of a socket filter
    if program < 0:
        return "impossible", f"bpf(2): {os.strerror(ctypes.get_errno())}"
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, 50, program)  # SO_ATTACH_BPF
    os.close(program)
    return s, s.fileno()


def reuseport_program():
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return "impossible", "the kernel does not tell its types (CONFIG_DEBUG_INFO_BTF)"
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", 0))
    code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K
    s.setsockopt(socket.SOL_SOCKET, 51, struct.pack("@HP", 1, ctypes.addressof(code)))  # SO_ATTACH_REUSEPORT_CBPF
    return s, s.fileno()


def deadline():
    attributes = ctypes.create_string_buffer(struct.pack("<IIQiIQQQ", 48, 6, 0, 0, 0, 5_000_000, 100_000_000, 100_000_000))
    if LIBC.syscall(314, 0, attributes, 0) < 0:  # sched_setattr
        return "impossible", f"sched_setattr(2): {os.strerror(ctypes.get_errno())}"
    return None, 0


def session_of_two_parents():
    """Tasks of a session whose leader has ended, under two parents."""
    checked(LIBC.prctl(36, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")

    def wait():
        while os.path.isdir(FOLDER):
            time.sleep(0.05)
        os._exit(0)
    leader = os.fork()
    if leader == 0:
        os.setsid()
        if os.fork() == 0:
            wait()
        if os.fork() == 0:
            checked(LIBC.prctl(36, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
            if os.fork() == 0:
                wait()
            os.setsid()
            os.mkdir(os.path.join(FOLDER, "apart"))
            wait()
        os._exit(0)
    os.waitpid(leader, 0)
    while not os.path.isdir(os.path.join(FOLDER, "apart")):
        time.sleep(0.01)
    return None, leader


def roots_folder():
    """The same of its working folder."""
    os.mkdir(os.path.join(FOLDER, "closed"), 0o700)
    become_nobody(os.path.join(FOLDER, "closed"))
    return None, 0


def roots_deleted_file():
    """A deleted file, where its user cannot make one."""
    os.mkdir(os.path.join(FOLDER, "closed"), 0o755)
    f = open(os.path.join(FOLDER, "closed", "gone"), "w+")
    os.chown(f.fileno(), NOBODY, NOBODY)
    os.unlink(f.name)
    become_nobody()
    return f, f.fileno()


def roots_socket():
    """A name of a socket, where its user cannot make one."""
    os.mkdir(os.path.join(FOLDER, "closed"), 0o755)
    s = socket.socket(socket.AF_UNIX)
    s.bind(os.path.join(FOLDER, "closed", "socket"))
    become_nobody()
    s.listen()
    return s, s.fileno()


def roots_pair():
    """Both ends tell of root, who made them (SO_PEERCRED)."""
    pair = socket.socketpair()
    become_nobody()
    return pair, pair[0].fileno()


def timers_beyond_the_limit():
    """Which came down later."""
    import resource
    timers = [ctypes.c_void_p() for _ in range(20)]
    for timer in timers:
        checked(LIBC.timer_create(1, None, ctypes.byref(timer)), "timer_create")
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (10, 10))
    return timers, 0


def forced_buffer():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    become_nobody()
    return s, s.fileno()


def marked():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, 36, 7)  # SO_MARK
    become_nobody()
    return s, s.fileno()


def alarm_clock():
    fd = LIBC.timerfd_create(8, 0)  # CLOCK_REALTIME_ALARM
    if fd < 0:
        return "impossible", f"timerfd_create(2): {os.strerror(ctypes.get_errno())}"
    become_nobody()
    return fd, fd


def securebits():
    """Which executing a set-id program would not change."""
    checked(LIBC.prctl(28, 1, 0, 0, 0), "PR_SET_SECUREBITS")  # SECBIT_NOROOT
    become_nobody()
    return None, 0


def thread_of_another():
    """A thread that took another user's rights, by a system call of its own."""
    done = []

    def run():
        done.append(LIBC.syscall(117, 1234, 1234, 1234))  # setresuid, of this thread alone
        while True:
            time.sleep(1)
    become = threading.Thread(target=run, daemon=True)
    os.chmod(os.path.dirname(FOLDER), 0o711)
    become.start()
    while not done:
        time.sleep(0.01)
    checked(done[0], "setresuid")
    return None, 0


def child_of_32_bits():
    path = os.path.join(FOLDER, "small")
    code = b"\xb8\x1d\0\0\0\xcd\x80\xeb\xf7"  # pause(), for ever
    base, headers = 0x8048000, 84
    with open(path, "wb") as f:
        f.write(b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + headers, 52, 0, 0, 52, 32, 1, 40, 0, 0))
        f.write(struct.pack("<IIIIIIII", 1, 0, base, base, headers + len(code), headers + len(code), 5, 4096) + code)
    os.chmod(path, 0o700)
    try:
        p = subprocess.Popen([path])
    except OSError as e:
        return "impossible", f"this kernel runs no 32-bit programs ({os.strerror(e.errno)}); boot one that does (ia32_emulation=1)"
    return p, p.pid


def child_without_vvar():
    """Its vdso is laid out as by another kernel."""
    areas = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[vvar]")]
    if not areas:
        return "impossible", "no [vvar]"
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        start, end = (int(x, 16) for x in areas[0])
        LIBC.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
        os.write(tell, b"x")
        while True:
            signal.pause()
    os.read(done, 1)
    for fd in (done, tell):
        os.close(fd)
    return None, pid


def child():
    return subprocess.Popen(["sleep", "1000"]), 0


KINDS = {f.__name__.replace("_", "-"): f for f in (
    tcp, tcp_backlog, listener, corked, ended_unread, lost_socket_name, netlink, packet, raw_ip, mptcp_listener, mptcp_connection, bound_to_interface, interface_gone, unix_from_another_network, unix_outside, epoll_on_its_way, inotify, fanotify, notified, terminal, terminal_with_guest, stopped_terminal, io_uring,
    userfaultfd, pidfd, thread_pidfd, device, flock, posix_lock, lease, message_queue, sysv_shm, sysv_queue, outside_pipe, seccomp, deleted_big_file, writable_file,
    mapped_file, own_thread_files, zombie_root, shared_memory_outside, landlock, user_dispatch, address_space_limit, thread_file,
    not_accepted, epoll_of_closed, epoll_of_another, watching, favoured, plain, child, child_of_32_bits, child_without_vvar, nobody, roots_file, roots_folder, roots_deleted_file, roots_socket, roots_pair, timers_beyond_the_limit, forced_buffer, marked, alarm_clock,
    thread_of_another, securebits, direct_io,
    removed_name, removed_name_mapped, ebpf_filter, reuseport_program, deadline, session_of_two_parents)}


def main():
    beat = os.open(os.path.join(FOLDER, "beat"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    held, detail = KINDS[KIND]()
    status = os.path.join(FOLDER, "status")
    with open(status + ".new", "w") as f:
        f.write(f"{'IMPOSSIBLE' if held == 'impossible' else 'READY'} {os.getpid()} {detail}")
    os.rename(status + ".new", status)
    n, end = 0, time.monotonic() + 600
    while os.path.isdir(FOLDER) and time.monotonic() < end:
        n += 1
        os.pwrite(beat, b"%12d" % n, 0)
        time.sleep(0.005)


if __name__ == "__main__":
    main()

"""Connections that are refused: wrong keys, names, versions and bytes. Both sides must say why, in a sentence."""
import os
import re
import socket
import ssl
import struct
import subprocess
import threading

from lib import tool
from lib.process import Deadline, descendants, kill_all, read, run, spawn, wait_for
from lib.suite import Skip, expect

PORT = 7411
VERSION = 3  # of the migration protocol


class Link:
    """Keys, a receiver on loopback, a sender that wants to move a program which is not touched."""

    def __init__(self, context, folder):
        self.binary, self.folder = context.binary, folder
        self.keys = tool.Keys(context.binary, os.path.join(folder, "keys"), ["source", "destination", "stranger"])
        self.log = os.path.join(folder, "receive.log")
        self.receiver = None
        self.program = spawn(["sleep", "1000"], log=os.path.join(folder, "program.log"))
        self.extra_keys = {}

    def __enter__(self):
        return self

    def other_keys(self, name, *options):
        """Another folder of keys, with its own CA."""
        folder = os.path.join(self.folder, name)
        code, out = run([self.binary, "keys", "--dir", folder, *options, "source", "destination"])
        expect(code == 0, f"migrate keys exited {code}: {out}")
        return folder

    def options(self, name, cacert=None, folder=None):
        if folder:
            return ["--cacert", cacert or f"{folder}/ca.crt", "--cert", f"{folder}/{name}.crt", "--key", f"{folder}/{name}.key"]
        return self.keys.options(name)

    def receive(self, *options, keys=None):
        link = self.keys.options("destination") if keys is None else keys
        self.receiver = spawn([self.binary, "receive", "--listen", f"127.0.0.1:{PORT}", "--state-dir",
                               os.path.join(self.folder, "state-destination"), *link, *options], log=self.log)
        needle = f":{PORT:04X} "

        def listening():
            expect(self.receiver.poll() is None, f"receive exited {self.receiver.returncode}: {read(self.log)}")
            return any(needle in line and " 0A " in line for line in read(f"/proc/{self.receiver.pid}/net/tcp").splitlines())
        wait_for(listening, "migrate receive to listen", 15)

    def send(self, *options, keys=None, name="destination", address=None):
        link = self.keys.options("source") if keys is None else keys
        return run([self.binary, "send", address or f"127.0.0.1:{PORT}", f"pid:{self.program.pid}", "--parent-may-notice",
                    *([] if name is None else ["--tls-name", name]), "--state-dir", os.path.join(self.folder, "state-source"),
                    *link, *options], log=os.path.join(self.folder, "commands.log"), timeout=45)

    def refused(self, here, there, *options, **named):
        """A send that both sides refuse: `here` and `there` are patterns of their sentences."""
        code, out = self.send(*options, **named)
        expect(code == 2, f"send exited {code}, not 2: {out.strip()[-500:]}\nreceive said: {read(self.log)[-300:]}")
        expect(re.search(here, out), f"the sender does not say {here!r}: {out.strip()[-500:]}\nreceive: {read(self.log)[-300:]}")
        self.receiver_says(there)
        self.still_well()

    def receiver_says(self, pattern, seconds=15):
        try:
            wait_for(lambda: re.search(pattern, read(self.log)), f"the receiver to say {pattern!r}", seconds)
        except Deadline as e:
            raise Deadline(f"{e}; it said: {read(self.log)[-500:]}") from None

    def still_well(self):
        """The program runs, the receiver still answers an honest peer."""
        expect(self.program.poll() is None, "the program is gone")
        expect(read(f"/proc/{self.program.pid}/status").count("TracerPid:\t0"), "the program is traced")
        expect(self.receiver.poll() is None, f"the receiver ended: {read(self.log)[-300:]}")

    def connect(self):
        return socket.create_connection(("127.0.0.1", PORT), 20)

    def tls(self, name="source", version=None):
        """A TLS connection with good certificates, after the handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        cacert, cert, key = self.keys.options(name)[1::2]
        context.load_verify_locations(cacert)
        context.load_cert_chain(cert, key)
        if version:
            context.minimum_version = context.maximum_version = version
        return context.wrap_socket(self.connect(), server_hostname="destination")

    def __exit__(self, *_):
        for p in (self.program, self.receiver):
            if p:
                kill_all(descendants(p.pid))
                p.wait(timeout=5)


def case(function):
    def run_it(context, folder):
        with Link(context, folder) as link:
            function(link)
    run_it.__name__ = function.__name__
    return run_it


def wrong_ca(link):
    """Both sides have certificates, each of a CA of its own."""
    link.receive()
    link.refused("was not signed by the CA", "its CA did not sign it|was not signed by the CA",
                 keys=link.options("source", folder=link.other_keys("others")))


def ca_of_the_sender_only(link):
    """The sender trusts the receiver, whose CA did not sign the sender."""
    others = link.other_keys("others")
    link.receive()
    link.refused("refuses our certificate .*its CA did not sign it", "was not signed by the CA",
                 keys=link.options("source", cacert=os.path.join(link.folder, "keys", "ca.crt"), folder=others))


def expired(link, side):
    folder = os.path.join(link.folder, "keys")
    code, out = run([link.binary, "keys", "--dir", folder, "--days=-1", "--force", side])
    expect(code == 0, f"migrate keys --days=-1 exited {code}: {out}")
    link.receive()
    if side == "source":
        link.refused("refuses our certificate .*it has expired", "the certificate of .*source.* has expired")
    else:
        link.refused("the certificate of .*destination.* has expired", "refuses our certificate .*it has expired")


def not_accepted(link):
    link.receive("--accept", "somebody-else")
    link.refused("refuses us.*source", "source.* is refused.*--accept source")


def accepted_is_not_enough(link):
    """--accept names a host; a stranger of the same CA is still refused."""
    link.receive("--accept", "source")
    link.refused("refuses us.*stranger", "stranger.* is refused.*--accept stranger", keys=link.keys.options("stranger"))


def wrong_name(link):
    link.receive()
    link.refused("certificate is for destination, not for elsewhere.*--tls-name", "refuses us.*not for elsewhere", name="elsewhere")


def openssl(link, *options):
    try:
        r = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{PORT}", "-brief", *options], input=b"hello\n",
                           capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        raise Skip("openssl is not installed (scripts/install-deps installs it)") from None
    return r.returncode, (r.stdout + r.stderr).decode(errors="replace")


def no_certificate(link):
    link.receive()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        # In TLS 1.3 the client hears of it after its own handshake.
        with context.wrap_socket(link.connect()) as s:
            s.recv(1)
        told = "nothing"
    except OSError as e:
        told = str(e)
    expect(re.search("(?i)certificate.required", told), f"the client was told {told}")
    link.receiver_says("127.0.0.1:[0-9]+.* shows no certificate; give it --cert and --key")
    link.still_well()


def old_tls(link):
    link.receive()
    code, out = openssl(link, "-tls1_2")
    expect(code != 0 and re.search("protocol version|alert", out), f"openssl was not refused: {out[-400:]}")
    link.receiver_says("no TLS version in common; we speak TLS 1.3 only")
    link.still_well()


def old_tls_receiver(link):
    """A TLS 1.2 server in the receiver's place."""
    _, cert, key = link.keys.options("destination")[1::2]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def serve(server):
        try:
            context.wrap_socket(server.accept()[0], server_side=True)
        except OSError:
            pass  # the client hangs up
    with socket.create_server(("127.0.0.1", PORT)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        code, out = link.send()
        thread.join(10)
    expect(code == 2, f"send exited {code}: {out[-400:]}")
    expect("no TLS version in common; we speak TLS 1.3 only" in out, f"the sender does not say why: {out[-400:]}")


def plain_text(link):
    link.receive()
    with link.connect() as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        s.settimeout(20)
        data = b""
        while chunk := s.recv(4096):
            data += chunk
    expect(b"TLS 1.3" in data, f"the client was not told: {data!r}")
    link.receiver_says("speaks plain text instead of TLS")
    link.still_well()


def insecure_sender(link):
    link.receive()
    link.refused("refuses us.*TLS 1.3 with certificates", "speaks plain text instead of TLS", "--insecure", keys=[])


def insecure_receiver(link):
    link.receive("--insecure", keys=[])
    link.refused("does not speak TLS|refuses us|--insecure", "speaks TLS, and this side was told --insecure")


def insecure_beyond_loopback(link):
    code, out = run([link.binary, "receive", "--insecure", "--listen", f"0.0.0.0:{PORT}", "--state-dir", link.folder + "/s"], timeout=20)
    expect(code == 2 and "--insecure listens on loopback addresses only" in out, f"receive exited {code}: {out}")
    address = own_address()
    if not address:
        raise Skip("this host has no address but loopback")
    with socket.create_server((address, PORT)):
        code, out = link.send("--insecure", keys=[], address=f"{address}:{PORT}")
    expect(code == 2 and "would show all memory of the program to the network" in out, f"send exited {code}: {out}")


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return s.getsockname()[0]
        except OSError:
            return None


def no_keys(link):
    missing = ["--cacert", "/nonexistent/ca.crt", "--cert", "/nonexistent/c.crt", "--key", "/nonexistent/c.key"]
    for verb in (["send", f"127.0.0.1:{PORT}", f"pid:{link.program.pid}", "--parent-may-notice"],
                 ["receive", "--listen", f"127.0.0.1:{PORT}"]):
        code, out = run([link.binary, *verb, *missing, "--state-dir", link.folder + "/s"], timeout=20)
        expect(code == 2 and "/nonexistent/ca.crt" in out, f"{verb[0]} exited {code}: {out}")


def drain(connection):
    """What the peer says until it hangs up."""
    data = b""
    connection.settimeout(25)
    try:
        while chunk := connection.recv(4096):
            data += chunk
    except (OSError, ssl.SSLError):
        pass
    return data


def noise_after_handshake(link):
    """Good certificates, then bytes that are no greeting."""
    link.receive()
    with link.tls() as s:
        s.sendall(os.urandom(4096))
        drain(s)
    link.receiver_says("does not speak migrate|is damaged|greeting")
    link.still_well()


def greeted(link, name="source"):
    """Through the exchange of verdicts; the receiver's is read."""
    s = link.tls(name)
    verdict = s.recv(8)
    while len(verdict) < 8:
        verdict += s.recv(8 - len(verdict))
    s.sendall(verdict)  # ours: nothing to object to, as the receiver's
    return s


PREFACE_MAGIC = b"MIGC"


def preface(version=1):
    return PREFACE_MAGIC + struct.pack("<HH", version, 0)


def hello(version):
    """A greeting of that version and nothing else: field 1 of field 10."""
    return frame(10, bytes([0x52, 2, 0x08, version]))


def frame(kind, payload, flags=0, length=None):
    return struct.pack("<HHI", kind, flags, len(payload) if length is None else length) + payload


def bad_bytes(data, pattern):
    def function(link):
        link.receive()
        with greeted(link) as s:
            s.sendall(data)
            told = drain(s)
        expect(told, "the peer was told nothing")
        link.receiver_says(pattern)
        link.still_well()
    return function


def fake_receiver(link, greeting, ask=None, exit_code=2):
    """A peer with good certificates that greets with the bytes of `greeting`; gives what send (or `ask`) said."""
    cacert, cert, key = link.keys.options("destination")[1::2]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cacert)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(server):
        try:
            with context.wrap_socket(server.accept()[0], server_side=True) as s:
                s.sendall(b"MIGW" + bytes(4) + preface() + frame(10, bytes([0x52, len(greeting)]) + greeting))
                drain(s)
        except OSError:
            pass  # the client hangs up
    with socket.create_server(("127.0.0.1", PORT)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        code, out = (ask or link.send)()
        thread.join(10)
    expect(code == exit_code, f"it exited {code}, not {exit_code}: {out[-400:]}")
    expect(link.program.poll() is None, "the program is gone")
    return out


def receiver_of_other_version(link):
    expect("version 99 of the migration protocol" in fake_receiver(link, bytes([0x08, 99])), "the sender does not say why")


def receiver_of_other_machine(link):
    """Our version, a machine of another architecture, no processor flags."""
    out = fake_receiver(link, bytes([0x08, VERSION]) + text_field(MACHINE, b"s390x"))
    expect("the destination is a s390x, the source a " in out, f"the sender does not say why: {out[-400:]}")


def receiver_with_old_processor(link):
    here = os.uname().machine.encode()
    page = bytes([13 << 3]) + b"\x80\x20"
    out = fake_receiver(link, bytes([0x08, VERSION]) + text_field(MACHINE, here) + page + bytes([12 << 3]) + b"\xff" * 9 + b"\x01")
    expect(re.search("the destination's processor lacks .*sse", out), f"the sender does not say why: {out[-400:]}")


MACHINE = 6


def text_field(number, text):
    return bytes([number << 3 | 2, len(text)]) + text


CASES = {f"tls/{f.__name__.replace('_', '-')}": case(f) for f in (
    wrong_ca, ca_of_the_sender_only, not_accepted, accepted_is_not_enough, wrong_name, no_certificate, old_tls, old_tls_receiver,
    plain_text, receiver_of_other_version, receiver_of_other_machine, receiver_with_old_processor, insecure_sender, insecure_receiver, insecure_beyond_loopback, no_keys, noise_after_handshake)}
CASES["tls/expired-sender"] = case(lambda link: expired(link, "source"))
CASES["tls/expired-receiver"] = case(lambda link: expired(link, "destination"))
for name, data, pattern in (
        ("other-version", preface() + hello(99), "the peer speaks version 99 of the migration protocol"),
        ("no-version", preface(0), "version 0"),
        ("wrong-magic", b"XXXX" + struct.pack("<I", 1), "(?i)magic|speak|damaged|kind"),
        ("huge-frame", preface() + frame(1, b"", length=1 << 31), "(?i)long|large|limit|damaged"),
        ("noise-in-frame", preface() + frame(10, os.urandom(64)), "(?i)damaged|decode|unknown"),
        ("unknown-frame", preface() + frame(999, b"x"), "(?i)unknown|damaged|kind")):
    CASES[f"protocol/{name}"] = case(bad_bytes(data, pattern))

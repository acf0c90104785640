"""What `migrate check` says: of this host, and of a receiver, with which nothing begins. Cases of refusals.py."""
import os
import re

from lib import tool
from lib.process import read, run
from lib.suite import expect
from tls_refusals import MACHINE, PORT, VERSION, case, fake_receiver, text_field

VERDICTS = ("ok", "absent", "missing")


def check(binary, *options, folder, prefix=()):
    return run([binary, "check", "--no-default-config", *options], log=os.path.join(folder, "commands.log"), timeout=30, prefix=prefix)


def findings(out):
    """{name: event} of a --json run, and its last event."""
    events = tool.events(out)
    expect(events and events[-1]["event"] == "checked", f"no end: {out[-400:]}")
    return {e["name"]: e for e in events if e["event"] == "check"}, events[-1]


def lists_everything(context, folder):
    """Each thing has a line with its verdict; --json has the same; what is missing has a consequence and a remedy."""
    code, out = check(context.binary, folder=folder)
    expect(code == 0 and out.rstrip().endswith("Looks good."), f"check exited {code}: {out[-800:]}")
    lines = dict(re.findall(r"^(?:ok|absent|MISSING) +(\S+) +(.*)$", out, re.M))
    code, out = check(context.binary, "--json", folder=folder)
    found, end = findings(out)
    expect(code == 0 and end["good"] is True, f"check --json exited {code}: {out[-400:]}")
    expect(set(found) == set(lines), f"only one of the two tells {set(found) ^ set(lines)}")
    _, listed = check(context.binary, "--feature", "list", folder=folder)
    for name in [*listed.split(), "capabilities", "cpu_cgroup", "apart_cgroups", "huge_pages", "hard_limits", "descriptors", "tls_keys"]:
        expect(name in found, f"{name} is not told")
    for name in ("timens", "clone3_set_tid", "futex_waitv", "freezer", "ptrace_seize"):
        expect(found[name]["required"] and found[name]["verdict"] == "ok", f"{name}: {found[name]}")
    for fact in found.values():
        expect(fact["verdict"] in VERDICTS and fact["use"], f"{fact}")
        if fact["verdict"] != "ok":
            expect(fact["without"] and fact["remedy"], f"not said what follows, or what to do: {fact}")
            expect(fact["remedy"] in lines[fact["name"]], f"the line does not say what to do: {lines[fact['name']]}")


def without_capabilities(context, folder):
    """Required things that are missing are told, each, and the exit code says so."""
    code, out = check(context.binary, "--json", folder=folder, prefix=["setpriv", "--bounding-set", "-sys_ptrace,-sys_nice"])
    found, end = findings(out)
    expect(code == 1 and end["good"] is False, f"check exited {code}: {out[-400:]}")
    for name in ("CAP_SYS_PTRACE", "CAP_SYS_NICE"):
        expect(found.get(name, {}).get("verdict") == "missing", f"{name}: {found.get(name)}")
    expect("capabilities" not in found and found["kcmp"]["verdict"] == "ok", "what is there is not told right")
    code, out = check(context.binary, folder=folder, prefix=["setpriv", "--bounding-set", "-sys_ptrace"])
    expect(code == 1 and "Looks good" not in out and re.search("^MISSING +CAP_SYS_PTRACE .*to do: run as root", out, re.M), out[-400:])


def one_feature(context, folder):
    """As CRIU's: 0 and 1, by name."""
    for name, code in (("timens", 0), ("nonsense", 1)):
        got, out = check(context.binary, "--feature", name, folder=folder)
        expect(got == code and name in out, f"--feature {name} exited {got}: {out}")
    # What `criu check` takes besides, and what its configuration files may hold.
    got, out = check(context.binary, "--all", "--extra", "--experimental", "-v4", "--tcp-close", folder=folder)
    expect(got == 0 and "Looks good." in out, f"check exited {got}: {out[-400:]}")
    got, out = check(context.binary, "--feature", "timens", "127.0.0.1:1", folder=folder)
    expect(got == 2 and "leave out one of them" in out, f"a feature of a peer: {got}, {out}")


def keys_that_are_named_must_be_there(context, folder):
    code, out = check(context.binary, "--cacert", os.path.join(folder, "none.crt"), folder=folder)
    expect(code == 1 and re.search("^MISSING +tls_keys .*none.crt", out, re.M), f"check exited {code}: {out[-400:]}")


def ask(link, *options, name="destination", port=PORT):
    return check(link.binary, f"127.0.0.1:{port}", "--tls-name", name, *link.keys.options("source"), *options, folder=link.folder)


def peer(link):
    """A receiver that fits: nothing begins there, it takes it for no error, and goes on."""
    link.receive("--once")
    for options in ((), ("--json",)):
        code, out = ask(link, *options)
        expect(code == 0, f"check exited {code}: {out[-600:]}\nreceive: {read(link.log)[-300:]}")
    found, end = findings(out)
    expect(end["good"] and found["machine"]["verdict"] == found["processor"]["verdict"] == found["kernel"]["verdict"] == "ok", f"{found}")
    link.receiver_says("looked at this host, and wants nothing")
    expect("refused" not in read(link.log) and "ended the connection" not in read(link.log), f"an error to the receiver: {read(link.log)}")
    link.still_well()
    left = [f for _, _, names in os.walk(os.path.join(link.folder, "state-destination")) for f in names if "lock" not in f]
    expect(not left, f"a session began: {left}")


def peer_that_does_not_fit(link):
    """All that is in the way is told, not only the first thing."""
    out = fake_receiver(link, bytes([0x08, VERSION]) + text_field(MACHINE, b"s390x"), lambda: ask(link, "--json"), exit_code=1)
    found, end = findings(out)
    expect(not end["good"], f"{end}")
    for name in ("machine", "page_size", "register_state", "processor"):
        expect(found[name]["verdict"] == "missing" and found[name]["remedy"] and found[name]["without"], f"{name}: {found.get(name)}")
    expect("s390x" in found["machine"]["found"], f"{found['machine']}")
    expect(found["kernel"]["verdict"] == "absent" and not found["kernel"]["required"], f"{found['kernel']}")


def peer_of_other_version(link):
    out = fake_receiver(link, bytes([0x08, 99]), lambda: ask(link))
    expect("version 99 of the migration protocol" in out and "same version of migrate" in out, out)


def peer_that_is_not_there(link):
    code, out = ask(link, port=1)
    expect(code in (1, 2) and "127.0.0.1" in out, f"check exited {code}: {out}")


def peer_with_another_name(link):
    link.receive()
    code, out = ask(link, name="beta")
    expect(code == 2 and "not for beta" in out, f"check exited {code}: {out}")
    link.still_well()


CASES = {f"check/{f.__name__.replace('_', '-')}": f for f in (
    lists_everything, without_capabilities, one_feature, keys_that_are_named_must_be_there)}
CASES |= {f"check/{f.__name__.replace('_', '-')}": case(f) for f in (
    peer, peer_that_does_not_fit, peer_of_other_version, peer_that_is_not_there, peer_with_another_name)}

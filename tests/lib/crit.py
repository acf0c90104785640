"""Reading image folders: with Debian's `crit`, and with protoc for what it does not know."""
import json
import os
import shutil
import struct
import subprocess
import tempfile

from .suite import ROOT, Skip, expect

COMMON, SERVICE, INVENTORY = 0x54564319, 0x55105940, 0x58313116
# Images that Debian's crit may not know: magic, schema, message.
OWN = {0x43114433: ("images/timens.proto", "img.timens_entry"), 0x4d494758: ("ext/ext.proto", "ext.ThreadExt"),
       0x4d494750: ("ext/ext.proto", "ext.PipePackets"), 0x4d494746: ("ext/ext.proto", "ext.FileOwner"),
       0x4d494753: ("ext/ext.proto", "ext.PacketSender"), 0x4d49474b: ("ext/ext.proto", "ext.SocketState"),
       0x4d494752: ("ext/ext.proto", "ext.WaitingReader"), 0x4d494754: ("ext/ext.proto", "ext.Terminal"),
       0x4d494743: ("ext/ext.proto", "ext.ControllingTerminal"), 0x4d494745: ("ext/files.proto", "ext.WatchedFile"),
       0x4d494744: ("ext/files.proto", "ext.EndedProcess"), 0x4d494757: ("ext/files.proto", "ext.Watch"),
       0x4d494741: ("ext/files.proto", "ext.GhostAttribute")}


def command():
    found = shutil.which("crit")
    if not found:
        raise Skip("crit is not installed (scripts/install-deps installs criu, which has it)")
    # Debian's script, with Debian's Python: another one first in PATH lacks its modules.
    return ["/usr/bin/python3", found]


# What `crit decode` does, for many images in one process: one takes 0.1 s to start, and each thread has an image.
DECODE_ALL = """
import json, os, sys
import pycriu
for name in sys.argv[2:]:
    try:
        with open(os.path.join(sys.argv[1], name), 'rb') as f:
            print(json.dumps(pycriu.images.load(f, False)['entries']))
    except pycriu.images.MagicException:
        print('null')
    except Exception as e:
        sys.exit(name + ': ' + repr(e))
"""


def entries(folder, names):
    """{name: the entries of the image, decoded by crit's library as plain values; None if it is none that crit knows}."""
    python = command()[0]
    result = subprocess.run([python, "-c", DECODE_ALL, folder, *names], capture_output=True, text=True, timeout=120)
    expect(result.returncode == 0, f"crit cannot decode {result.stderr[-300:]}")
    lines = result.stdout.splitlines()
    expect(len(lines) == len(names), f"crit decoded {len(lines)} of {len(names)} images")
    return {name: json.loads(line) for name, line in zip(names, lines)}


def show(folder, name):
    result = subprocess.run([*command(), "show", os.path.join(folder, name)], capture_output=True, text=True, timeout=120)
    expect(result.returncode == 0, f"crit show fails on {name}: {result.stderr[-300:]}")
    return result.stdout


def own_entries(folder, name):
    """Text of each entry of an image that only our schemas describe."""
    with open(os.path.join(folder, name), "rb") as f:
        data = f.read()
    first, kind = struct.unpack_from("<II", data)
    expect(first == COMMON, f"{name} does not begin with the common magic")
    expect(kind in OWN, f"nobody knows the magic {kind:#x} of {name}")
    return decode(name, data, *OWN[kind])


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def decode(name, data, schema, message):
    """Text of each entry of an image, by protoc with our schemas: one run for all, as parts of one message."""
    if not shutil.which("protoc"):
        raise Skip("protoc is not installed (scripts/install-deps installs it)")
    parts, at = [], 8
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        expect(at + 4 + size <= len(data), f"an entry of {name} is longer than the image")
        parts.append(b"\x0a" + varint(size) + data[at + 4:at + 4 + size])
        at += 4 + size
    with tempfile.TemporaryDirectory(prefix="mcrit-") as folder:
        with open(os.path.join(folder, "all.proto"), "w") as f:
            f.write(f'syntax = "proto2";\noption optimize_for = LITE_RUNTIME;\nimport "{schema}";\nmessage All {{ repeated {message} entry = 1; }}\n')
        r = subprocess.run(["protoc", "--decode=All", "-I", os.path.join(ROOT, "proto"), "-I", folder, "all.proto"], timeout=60,
                           input=b"".join(parts), capture_output=True, check=False)
    expect(r.returncode == 0, f"protoc cannot decode {name}: {r.stderr.decode()[-300:]}")
    found = []
    for line in r.stdout.decode().splitlines():
        if line == "entry {":
            found.append("")
        elif line != "}":
            found[-1] += line.removeprefix("  ") + "\n"
    expect(len(found) == len(parts), f"protoc decoded {len(found)} of {len(parts)} entries of {name}")
    return found


class Images:
    """All images of a folder. `of["core-42"]`: the list of entries; `own["timens-9"]`: texts."""

    def __init__(self, folder):
        self.folder, self.of, self.own, self.raw = folder, {}, {}, {}
        names = []
        for name in sorted(os.listdir(folder)):
            if name.startswith("pages-"):
                self.raw[name.removesuffix(".img")] = os.path.getsize(os.path.join(folder, name))
            elif name.endswith(".img") or name == "stats-dump":
                names.append(name)
        for name, decoded in entries(folder, names).items():
            stem = name.removesuffix(".img")
            if decoded is None:
                self.own[stem] = own_entries(folder, name)
            else:
                self.of[stem] = decoded

    def only(self, stem):
        expect(stem in self.of, f"there is no image {stem}")
        expect(len(self.of[stem]) == 1, f"{stem} has {len(self.of[stem])} entries")
        return self.of[stem][0]

    def decode(self, stem, schema, message):
        with open(os.path.join(self.folder, stem + ".img"), "rb") as f:
            return decode(stem, f.read(), schema, message)

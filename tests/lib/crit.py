"""Reading image folders: with Debian's `crit`, and with protoc for what it does not know."""
import json
import os
import shutil
import struct
import subprocess

from .suite import ROOT, Skip, expect

COMMON, SERVICE, INVENTORY = 0x54564319, 0x55105940, 0x58313116
# Images that Debian's crit may not know: magic, schema, message.
OWN = {0x43114433: ("images/timens.proto", "img.timens_entry"), 0x4d494758: ("ext/ext.proto", "ext.ThreadExt"),
       0x4d494750: ("ext/ext.proto", "ext.PipePackets")}


def command():
    found = shutil.which("crit")
    if not found:
        raise Skip("crit is not installed (scripts/install-deps installs criu, which has it)")
    # Debian's script, with Debian's Python: another one first in PATH lacks its modules.
    return ["/usr/bin/python3", found]


def entries(folder, name):
    """The entries of an image, decoded by crit as plain values; None if it is none that crit knows."""
    result = subprocess.run([*command(), "decode", "-i", os.path.join(folder, name)], capture_output=True, text=True, timeout=120)
    if result.returncode != 0:
        expect("Unknown magic" in result.stderr + result.stdout, f"crit cannot decode {name}: {result.stderr[-300:]}")
        return None
    return json.loads(result.stdout)["entries"]


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


def decode(name, data, schema, message):
    """Text of each entry of an image, by protoc with our schemas."""
    if not shutil.which("protoc"):
        raise Skip("protoc is not installed (scripts/install-deps installs it)")
    found, at = [], 8
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        expect(at + 4 + size <= len(data), f"an entry of {name} is longer than the image")
        r = subprocess.run(["protoc", f"--decode={message}", "-I", os.path.join(ROOT, "proto"), schema], timeout=60,
                           input=data[at + 4:at + 4 + size], capture_output=True, check=False)
        expect(r.returncode == 0, f"protoc cannot decode {name}: {r.stderr.decode()[-300:]}")
        found.append(r.stdout.decode())
        at += 4 + size
    return found


class Images:
    """All images of a folder. `of["core-42"]`: the list of entries; `own["timens-9"]`: texts."""

    def __init__(self, folder):
        self.folder, self.of, self.own, self.raw = folder, {}, {}, {}
        for name in sorted(os.listdir(folder)):
            stem = name.removesuffix(".img")
            if name.startswith("pages-"):
                self.raw[stem] = os.path.getsize(os.path.join(folder, name))
            elif name.endswith(".img") or name == "stats-dump":
                decoded = entries(folder, name)
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

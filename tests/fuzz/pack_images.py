#!/usr/bin/env python3
"""pack_images.py FOLDER OUT [--files]: an image folder as an input of image_fuzz, or of files_fuzz (image_records.cpp)."""
import pathlib
import re
import struct
import sys

# The order is that of kKinds in image_records.cpp.
KINDS = [r"inventory", r"pstree", r"core-(\d+)", r"mm-(\d+)", r"fs-(\d+)", r"ids-(\d+)", r"files", r"fdinfo-(\d+)", r"pagemap-(\d+)",
         r"pagemap-shmem-(\d+)", r"memfd", r"pipes-data", r"fifo-data", r"migrate-pipes", r"sk-queues", r"remap-fpath",
         r"ghost-file-([0-9a-f]+)", r"timens-(\d+)", r"filelocks", r"migrate-ext", r"tty-info", r"migrate-files", r"migrate-senders",
         r"migrate-sockets", r"migrate-terminals", r"migrate-ctty"]
RAW = 0x80
LONGEST = 0xffff
TASKS = {"inventory", "pstree", "core", "mm", "fs", "ids", "pagemap", "timens", "filelocks", "migrate-ext"}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7f) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def number(message, field):
    """The value of a top-level number of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 2:
            size, at = varint(message, at)
            at += size
            continue
        if tag & 7 != 0:
            at += 8 if tag & 7 == 1 else 4
            continue
        value, at = varint(message, at)
        if tag >> 3 == field:
            return value
    return 0


def records(name, data):
    stem = name.removesuffix(".img")
    for kind, pattern in enumerate(KINDS):
        match = re.fullmatch(pattern, stem)
        if match:
            break
    else:
        return
    ident = int(match.group(1), 16 if "ghost" in stem else 10) if match.groups() else 0
    at = 4 if stem == "inventory" else 8
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        entry = data[at + 4:at + 4 + size]
        at += 4 + size
        yield kind, ident, entry
        raw = 0
        if stem in ("pipes-data", "fifo-data", "sk-queues"):
            raw = number(entry, 2)
        if "ghost" in stem:
            raw = number(entry, 1) if number(entry, 9) else len(data) - at
        if raw:
            yield kind | RAW, ident, data[at:at + raw]
            at += raw


def main():
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    packed = bytearray()
    for file in sorted(folder.glob("*.img")):
        if file.name.startswith("pages-") or "--files" in sys.argv and re.sub(r"(-\d+)?\.img$", "", file.name) in TASKS:
            continue
        for kind, ident, payload in records(file.name, file.read_bytes()):
            if len(payload) <= LONGEST:
                packed += struct.pack("<BIH", kind, ident, len(payload)) + payload
    out.write_bytes(packed)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Dumps programs and compares every image, decoded by Debian's crit, with /proc as it was while they were stopped.

    images.py [--build DIR] [--only REGEX] [--list]"""
import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
import image_facts  # noqa: E402
from lib import crit, netns, suite, tool  # noqa: E402
from lib.suite import expect  # noqa: E402

RECORD = os.path.join(suite.ROOT, "tests", "lib", "record.py")


def dumped(context, folder, name, prefix=()):
    """Dumps a program with -R; gives (images, facts)."""
    crit.command()
    t = tool.Tool(context.binary, folder)
    images, facts = os.path.join(folder, "images"), os.path.join(folder, "facts")
    program = cases.start(context, name, os.path.join(folder, "program"), prefix)
    try:
        program.ready()
        program.check()
        program.settle()
        script = f"[ \"$CRTOOLS_SCRIPT_ACTION\" != post-dump ] || exec /usr/bin/python3 {RECORD} {program.pid} {facts}"
        t.dump(program.pid, images, "-R", "--action-script", script, *program.dump_options)
        program.check()
    finally:
        program.end()
    with open(facts) as f:
        return crit.Images(images), json.load(f)


def compare(name, prefix=()):
    def case(context, folder):
        images, facts = dumped(context, folder, name, prefix)
        found = [d for check in image_facts.CHECKS for d in check(images, facts)]
        expect(not found, f"{len(found)} differences:\n  " + "\n  ".join(found[:12]))
    return case


def readable(context, folder):
    """`crit show` takes every image that crit knows; the others decode with our schemas."""
    images, _ = dumped(context, folder, "files")
    for name in images.of:
        file = name if name == "stats-dump" else name + ".img"
        expect('"magic"' in crit.show(images.folder, file), f"crit show {file} gives no JSON")
    for name, texts in images.own.items():
        expect(texts and all(texts), f"{name} decodes to nothing")


def main():
    options = suite.arguments(__doc__)
    named = {f"fields/{n}": compare(n) for n in [*cases.WORKLOADS, *cases.PROGRAMS] if n not in cases.IN_FEW}
    named["fields/clocks-of-another-namespace"] = compare("clocks", netns.OTHER_CLOCKS)
    named["readable"] = readable
    return suite.main(options, named, "mimages-")


if __name__ == "__main__":
    sys.exit(main())

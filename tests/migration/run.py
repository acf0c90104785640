#!/usr/bin/env python3
"""Moves every workload and some real programs in every mode, and checks that nobody can tell the difference.

    run.py [--build DIR] [--only REGEX] [--mode MODE] [-j N] [--list] [--table FILE]

One line a case; the log of a failed one is kept and its end printed. Small workloads are moved in bundles, and those of them
that fail have a line each; --only SUBJECT.NAME moves one alone. Those that are known to come out wrong are told loudly, and
fail if they do not. Closes with the counts."""
import argparse
import contextlib
import glob
import os
import re
import shutil
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
import small  # noqa: E402
import table  # noqa: E402
from lib import parallel, remains, tool  # noqa: E402
from lib.process import Deadline, become_subreaper  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
EXPECTED = (cases.programs.Unwell, tool.Failed, Deadline)


def one(context, mode, name, folder):
    """In a process of its own. Gives [(verdict, name, seconds, text)]: for a bundle those that are not well, and then itself;
    and {workload: verdict}."""
    started = time.monotonic()
    if name in context.small.bundles:
        return of_bundle(context, mode, name, folder, started)
    verdict, text = "PASS", ""
    try:
        cases.run_case(context, mode, name, folder)
        if name in small.REFUSED:
            verdict, text = "FAIL", "it is in the list of those that are refused, and was moved: take it from the list"
    except cases.Refused as e:
        verdict, text = "REFUSED", str(e)
    except cases.Skip as e:
        verdict, text = "SKIP", str(e)
    except EXPECTED as e:
        verdict, text = "FAIL", str(e)
    except Exception:
        verdict, text = "FAIL", traceback.format_exc(limit=-6)
    if verdict == "REFUSED":
        why = small.REFUSED.get(name)
        verdict, text = ("REFUSED", f"refused: it {why}") if why is not None and why in text else ("FAIL", text)
    if name in small.KNOWN_WRONG:
        verdict, text = known_wrong(name, mode, verdict, text)
    if verdict == "FAIL":
        text += kept_logs(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return [(verdict, name, time.monotonic() - started, text)], {name: verdict}


def known_wrong(name, mode, verdict, text):
    modes, why = small.KNOWN_WRONG[name]
    if verdict == "SKIP" or verdict == "PASS" and mode not in modes:
        return verdict, text
    if verdict == "PASS":
        return "FAIL", f"it is in the list of those known to be wrong ({why}), and comes out right: take it from the list"
    return "WRONG", f"KNOWN TO COME OUT WRONG: {why}: " + text.strip().replace("\n", " | ")[:200]


def of_bundle(context, mode, name, folder, started):
    members = context.small.members(name, mode)
    found = cases.run_bundle(context, mode, members, folder, EXPECTED)
    verdicts = {n: "SKIP" if isinstance(t, cases.Skip) else "FAIL" if t else "PASS" for n, t in found.items()}
    lines = [(v, n, 0.0, str(found[n])) for n, v in verdicts.items() if v != "PASS"]
    well = list(verdicts.values()).count("PASS")
    if "FAIL" in verdicts.values():
        lines[-1] = (*lines[-1][:3], lines[-1][3] + kept_logs(f"{folder}-0"))
    return [*lines, *[("PASS", name, time.monotonic() - started, f"{well} workloads")] * (well > 0)], verdicts


def kept_logs(folder):
    text = f"\n  kept: {folder}"
    paths = [os.path.join(folder, f) for f in ("commands.log", "receive.log", "program/output")]
    for path in paths + sorted(glob.glob(f"{folder}/images-*/*.log")):
        file = os.path.relpath(path, folder)
        if os.path.exists(path) and os.path.getsize(path):
            text += f"\n  --- {file}\n" + "\n".join("  " + line for line in tool.tail(path, 12).splitlines())
    return text


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="build folder")
    p.add_argument("--migrate", help="the program under test (default: in the build folder)")
    p.add_argument("--workloads", help="folder of the workloads (default: in the build folder)")
    p.add_argument("--only", action="append", default=[], help="regular expression over MODE/NAME; may be repeated")
    p.add_argument("--mode", action="append", choices=cases.MODES, default=[])
    p.add_argument("--list", action="store_true")
    p.add_argument("--table", help="Markdown file: what came of each workload in each mode; other cells stay as they are")
    p.add_argument("-j", "--jobs", type=int, default=1)
    p.add_argument("--timeout", type=int, default=240, help="seconds a case")
    p.add_argument("--keep", action="store_true", help="keep the folder of the run")
    p.add_argument("--not-alone", action="store_true", help="others use migrate on this machine: do not look for remains")
    p.add_argument("--fail-fast", action="store_true")
    p.add_argument("--send-arg", action="append", default=[])
    p.add_argument("--receive-arg", action="append", default=[])
    return p.parse_args()


def main():
    options = parse()
    catalogue = small.Catalogue(os.path.abspath(options.workloads or os.path.join(options.build, "tests", "workloads")))
    wanted = selected(options, catalogue)
    if options.list:
        print("\n".join(f"{m}/{n}" + "".join(f" {w}" for w in (catalogue.members(n, m) if n in catalogue.bundles else ())) for m, n in wanted))
        return 0
    if os.geteuid() != 0:
        print("the migration tests need root", file=sys.stderr)
        return 2
    binary = os.path.abspath(options.migrate or os.path.join(options.build, "migrate", "migrate"))
    if not os.access(binary, os.X_OK):
        print(f"{binary} is not there: run scripts/build", file=sys.stderr)
        return 2
    top = tempfile.mkdtemp(prefix="mtest-")
    os.chmod(top, 0o755)
    context = cases.Context(binary, os.path.abspath(options.workloads or os.path.join(options.build, "tests", "workloads")),
                            top, options.send_arg, options.receive_arg, shared=options.jobs > 1 or options.not_alone)
    before = remains.snapshot()
    become_subreaper()
    parallel.interruptible()
    counts = None
    try:
        counts = run_all(options, context, wanted, top)
        left = [] if options.not_alone else remains.new_since(before, (top,))
        if left:
            print("FAIL nothing-left-behind\n  " + "\n  ".join(left))
            counts["FAIL"] += 1
    finally:
        # Logs of a failed case stay; those of an interrupted run do not.
        if not options.keep and not (counts and counts["FAIL"]):
            shutil.rmtree(top, ignore_errors=True)
    print(f"{counts['PASS'] + counts['REFUSED']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped"
          + f", {counts['WRONG']} KNOWN TO COME OUT WRONG" * bool(counts["WRONG"]), flush=True)
    return 1 if counts["FAIL"] else 0


def selected(options, catalogue):
    """[(mode, name)]"""
    wanted = []
    for mode in options.mode or cases.MODES:
        names = cases.names(mode)
        if mode in cases.SMALL_MODES:
            names += [*catalogue.bundles, *catalogue.apart(mode)]
        wanted += [(mode, n) for n in names if not options.only or any(re.search(o, f"{mode}/{n}") for o in options.only)]
        wanted += [(mode, n) for n in catalogue.names if mode in cases.SMALL_MODES and small.may_be_in(n, mode)
                   and alone(options.only, mode, n)]
    return list(dict.fromkeys(wanted))


def alone(patterns, mode, name):
    """A small workload is meant by a pattern that says more than its subject."""
    found = [re.search(p, f"{mode}/{name}") for p in patterns]
    return any(f and f.end() > len(mode) + 1 + name.index(".") + 1 for f in found)


def run_all(options, context, wanted, top):
    """Prints a line for each case; gives the counts. A fresh process a case: namespaces and children of one do not reach the
    next, and it cleans up also when we are interrupted."""
    # One that is refused as it should be has passed.
    counts = dict.fromkeys(("PASS", "FAIL", "SKIP", "REFUSED", "WRONG"), 0)
    verdicts = {}
    jobs = [(m, n, os.path.join(top, f"{m}-{n}")) for m, n in wanted]
    with contextlib.closing(parallel.run(jobs, lambda job: one(context, *job), options.jobs, options.timeout)) as running:
        for (mode, name, folder), result in running:
            lines, of = result or ([("FAIL", name, 0.0, "the case's process died or hung" + kept_logs(folder))],
                                   dict.fromkeys(context.small.bundles.get(name, [name]), "FAIL"))
            verdicts |= {(mode, n): v for n, v in of.items()}
            for verdict, who, seconds, text in lines:
                counts[verdict] += 1
                verdict = "PASS" if verdict == "REFUSED" else verdict
                print(f"{verdict} {mode}/{who} ({seconds:.1f} s)" + (f": {text}" if text else ""), flush=True)
            if options.fail_fast and any(line[0] == "FAIL" for line in lines):
                break
    if options.table:
        table.write(options.table, verdicts)
    return counts


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What cannot be moved is refused by name: the sentence, exit code 2, the program untouched, nothing left behind.

    refusals.py [--build DIR] [--only REGEX] [--list]

dump/..., pre-dump/...: refused by that command (dump_refusals.py). send/...: by `migrate send`, by either side (send_refusals.py).
early/...: what the destination refuses before anything is touched (early_refusals.py). tls/...: connections that are refused, told
on both sides (tls_refusals.py). check/...: what `migrate check` says (check_cases.py). texts/...: that sentences and documents are
true (texts.py)."""
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import check_cases  # noqa: E402
import dump_refusals  # noqa: E402
import early_refusals  # noqa: E402
import send_refusals  # noqa: E402
import texts  # noqa: E402
import tls_refusals  # noqa: E402
from lib import suite  # noqa: E402

CASES = {
    **dump_refusals.CASES,
    **send_refusals.CASES,
    **early_refusals.CASES,
    **tls_refusals.CASES,
    **check_cases.CASES,
    **texts.CASES,
}

if __name__ == "__main__":
    sys.exit(suite.main(suite.arguments(__doc__), CASES, "mrefuse-"))

"""Raw TLS over loopback, in the same run as what is compared with it: see ../tls_raw.cpp."""
import json
import os
import statistics
import subprocess

MIB = 256


def raw_tls(build, mib=MIB, mode="openssl", streams=2, rounds=1):
    """Bytes a second, the median of `rounds`. "openssl": OpenSSL's own socket I/O; "tls": our page streams, carrying nothing."""
    found = []
    for _ in range(rounds):
        out = subprocess.run([os.path.join(build, "bench", "tls_raw"), str(mib), str(streams), mode], capture_output=True, text=True,
                             check=True, timeout=120)
        result = json.loads(out.stdout)
        found.append(result["bytes"] / result["seconds"])
    return statistics.median(found)

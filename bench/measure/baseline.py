"""Raw TLS, in the same run as what is compared with it: see ../tls_raw.cpp."""
import json
import os
import statistics
import subprocess

MIB = 256


def measured(build, *options):
    """Bytes a second."""
    out = subprocess.run([os.path.join(build, "bench", "tls_raw"), *map(str, options)], capture_output=True, text=True, check=True,
                         timeout=120)
    result = json.loads(out.stdout)
    return result["bytes"] / result["seconds"]


def raw_tls(build, mib=MIB, mode="openssl", streams=2, rounds=1):
    """Over loopback, bytes that go nowhere; the median of `rounds`. "openssl": OpenSSL's own socket I/O; "tls": our page streams,
    carrying nothing."""
    return statistics.median(measured(build, mib, streams, mode) for _ in range(rounds))


def plain_copy(hosts, mib, streams=2):
    """Memory of the source into fresh memory of the destination, over the cable between them, while nothing else runs."""
    source, destination = map(hosts.network.namespace, ("source", "destination"))
    return measured(hosts.build, mib, streams, "copy", source, destination, hosts.network.address("destination"))

"""Install peers that are missing: `python -m leanconv.bench.peers.install OPTIONS OF LEANCONV BENCH`.

Each package is installed apart, so that one without a wheel for this machine does not keep the others out. Whatever
cannot be installed is named and skipped: the benchmark shows the rest.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from leanconv.bench.peers import PeerError, PeerInfo, named


def wanted(arguments: Sequence[str]) -> list[PeerInfo]:
    """Return the peers that options of `leanconv bench` ask for; names that do not exist are left to it."""
    words: list[str] = []
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--peers":
            given = value if equals else "".join(arguments[number + 1 : number + 2])
            words += [word.strip() for word in given.split(",")]
    try:
        return named(words)
    except PeerError:
        return []


def install(peers: Sequence[PeerInfo]) -> list[str]:
    """Install what is missing with pip, and return the requirements that could not be installed."""
    missing = dict.fromkeys(need for info in peers for need in info.missing)
    failed = []
    for requirement in missing:
        print(f"Installing {requirement} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            failed.append(requirement)
    for requirement in failed:
        print(f"{requirement} cannot be installed here; peers that need it are left out.", file=sys.stderr)
    return failed


if __name__ == "__main__":
    install(wanted(sys.argv[1:]))

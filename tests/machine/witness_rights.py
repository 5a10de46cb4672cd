"""Run a command, and tell with which rights QEMU and the back-end ran meanwhile, as JSON.

Runs inside a host, beside a test run: what counts is what each had in the end, as both start with
the rights of their starter and give them up before the guest runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WATCHED = {"qemu": "hostfault-guest,", "back-end": "hostfault.daxfs"}
FIELDS = ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "NoNewPrivs", "Seccomp")


def look(name: str) -> Iterator[dict[str, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # a process may end meanwhile
            if WATCHED[name] not in (folder / "cmdline").read_text():
                continue
            lines = (folder / "status").read_text().splitlines()
            told = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            yield {field: told[field].strip() for field in FIELDS}


def main() -> int:
    last: dict[str, dict[str, str]] = {}
    with subprocess.Popen(sys.argv[1:]) as child:
        while child.poll() is None:
            for name in WATCHED:
                for found in look(name):
                    last[name] = found
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.3)
    print(f"RIGHTS {json.dumps(last)}")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())

"""What tests of several rooms need."""

from __future__ import annotations

import os
import shutil
import zipapp
from pathlib import Path

import pytest

import hostfault

EPOCH = 1_000_000_000
FOREIGN = """
import argparse, socket, sys
from hostfault.daxfs.__main__ import main

parser = argparse.ArgumentParser()
parser.add_argument("--socket-path", required=True)
parser.add_argument("--shared-dir", required=True)
parser.add_argument("--tag", required=True)
options = parser.parse_args()
listener = socket.socket(socket.AF_UNIX)
listener.bind(options.socket_path)
listener.listen(1)
print("a foreign program listens", flush=True)
words = ["--fd", str(listener.detach()), "--shared", options.shared_dir]
sys.exit(main([*words, "--tag", options.tag, "--log", "/dev/null"]))
"""


@pytest.fixture(scope="session")
def foreign_virtiofsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of one file that is started as virtiofsd is: our back-end, without its log."""
    place = tmp_path_factory.mktemp("foreign")
    package, tree = Path(hostfault.__file__).parent, place / "tree"
    shutil.copytree(
        package / "daxfs", tree / "hostfault/daxfs", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(package / "__init__.py", tree / "hostfault")
    (tree / "__main__.py").write_text(FOREIGN)
    for each in tree.rglob("*"):  # the same again next time, for what is cached by its content
        os.utime(each, (EPOCH, EPOCH))
    program = place / "foreign-virtiofsd"
    zipapp.create_archive(tree, program, "/usr/bin/env python3")
    return program

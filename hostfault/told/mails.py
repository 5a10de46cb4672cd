"""``ci/series``: a series of kernels/patches or images/qemu/patches as mails for ``git am``.

    python -m hostfault.told.mails NAME OUTDIR

The series is put on the packaged source that it is for, in a repository of its own, so what is
written is known to apply. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hostfault.image import qemu
from hostfault.kernel import series
from hostfault.kernel.catalog import load, newest
from hostfault.kernel.choose import packaged
from hostfault.kernel.fetch import fetch_packages, fetch_source
from hostfault.kernel.packaged import package_version
from hostfault.plumbing.cache import Cache, default_cache
from hostfault.plumbing.errors import HostfaultError, LaunchError, SetupError, UsageError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.progress import heard_by
from hostfault.plumbing.project import PROJECT
from hostfault.plumbing.versions import version_of
from hostfault.told.plan import PLAIN_QEMU

log = logging.getLogger(__name__)

DATA = PROJECT / "docs" / "told" / "cells.json"
COVER = "cover.txt"  # beside the patches: the subject, an empty line, and the text
SUBJECT_HERE, TEXT_HERE = "*** SUBJECT HERE ***", "*** BLURB HERE ***"  # git-format-patch(1)
_FIGURES = re.compile(r"^@(\w+)@$", re.MULTILINE)
_IDENTITY = ("-c", "user.name=hostfault", "-c", "user.email=hostfault@localhost")
# Nothing of the caller's git decides over what is written.
_ENVIRONMENT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8"}


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="ci/series", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "name",
        help="SERIES, for the newest release, or NAME+SERIES as for --host-kernel and --qemu",
    )
    add("outdir", type=Path, help="an empty or new directory for the mails")
    options = parser.parse_args(words)
    cache = default_cache()
    try:
        with heard_by(lambda text: print(f"... {text}", file=sys.stderr)):
            mails = post(options.name, options.outdir, cache)
    except HostfaultError as error:
        sys.stderr.write(f"series: {error}\n")
        return 3
    finally:
        cache.close()
    for mail in mails:
        print(mail)
    return 0


def post(name: str, outdir: Path, cache: Cache) -> list[Path]:
    """Write the mails of a series. Raises :class:`UsageError` for a name that there is not."""
    kernel, plus, wanted = name.rpartition("+")
    if wanted in series.load(qemu.SERIES):
        return _post_qemu(name if plus else f"{qemu.newest()}+{wanted}", outdir, cache)
    catalog = load()
    entry = catalog.get(kernel if plus else newest())
    if entry is None:
        raise UsageError(f"{kernel}: no packaged kernel; known are {', '.join(catalog)}")
    version = package_version(packaged(entry, cache).image)
    patches = series.find(wanted).fit_for(version_of(version)).posted
    if not patches:
        raise UsageError(f"series {wanted} has no patches: there is nothing to send")
    source = f"linux-source-{'.'.join(version.split('.')[:2])}"
    archive = fetch_packages(cache, entry.suite, [source]) / "usr/src" / f"{source}.tar.xz"
    with tempfile.TemporaryDirectory() as tree:
        log.info("reading %s", archive.name)
        extract(archive, series.touched(patches), Path(tree))
        return write(Path(tree), patches, cover_of(patches[0]), outdir, f"Linux {version}")


def _post_qemu(name: str, outdir: Path, cache: Cache) -> list[Path]:
    """The same for QEMU; the packaged source is one that Debian's own patches are applied to."""
    patches = qemu.patches_of(name)
    if not patches:
        raise UsageError(f"{name} has no patches: there is nothing to send")
    package = fetch_source(cache, qemu.suite_of(name.partition("+")[0]), "qemu")
    with tempfile.TemporaryDirectory() as place:
        whole, tree = Path(place, "whole"), Path(place, "tree")
        log.info("unpacking QEMU %s", qemu.package_version(package))
        whole.mkdir()
        qemu.lay_out(package, whole)
        for each in sorted(series.touched(patches)):
            if (whole / each).exists():  # a new file is made by a patch
                (tree / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(whole / each, tree / each)
        base = f"QEMU {qemu.package_version(package)}"
        return write(tree, patches, cover_of(patches[0]), outdir, base)


def extract(archive: Path, names: Collection[str], tree: Path) -> None:
    """Some files of a kernel's source archive; one that is not there is made by a patch."""
    with tarfile.open(archive, "r|*") as members:
        for member in members:
            name = member.name.partition("/")[2]
            stream = members.extractfile(member) if name in names else None
            if stream is not None:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_bytes(stream.read())


def cover_of(patch: Path) -> str:
    """The cover letter that a patch's series has, with its figures; "" if it has none."""
    for folder in patch.parents[:2]:
        if (folder / COVER).exists():
            cells = json.loads(DATA.read_text())
            return filled((folder / COVER).read_text(), cells)
    return ""


def filled(text: str, cells: Sequence[Mapping[str, object]]) -> str:
    """A cover letter with a table of the data wherever a line says ``@TABLE@``.

    Raises :class:`SetupError` for a table without data.
    """

    def table(match: re.Match[str]) -> str:
        rows = [cell for cell in cells if cell["table"] == match[1]]
        if not rows:
            raise SetupError(f"there is no data for the table {match[1]}: run ci/told")
        lines = [(_what(row), str(row["policy"]), _outcome(row)) for row in rows]
        widths = [max(len(line[at]) for line in lines) for at in range(2)]
        return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in lines)

    return _FIGURES.sub(table, text)


def _what(row: Mapping[str, object]) -> str:
    """What is compared in the row's table: kernels, or cases and what they lack."""
    if row["table"] != "qemus":
        return str(row["kernel"])
    lacks = "" if "+" in str(row["kernel"]) else ", KVM as it is"
    lacks += ", QEMU as it is" if row["qemu"] == PLAIN_QEMU else ""
    return f"{row['backing']}, {row['fault']}, {row['access']}{lacks}"


def _outcome(row: Mapping[str, object]) -> str:
    """A cell in a few words of plain text."""
    counted = f", {row['faults']} faults and counting" if row["verdict"] == "spin" else ""
    again = f"; page given back: {row['recovery'] or row['again']}"
    return f"{row['verdict']}{counted}{again if row['recovery'] or row['again'] else ''}"


def write(tree: Path, patches: Sequence[Path], cover: str, outdir: Path, base: str) -> list[Path]:
    """Put patches on a tree by ``git am``, and write them as ``git format-patch`` does.

    Returns the mails, the cover letter first if there is one. Raises :class:`UsageError` for a
    directory that holds something, :class:`SetupError` for a patch that does not apply.
    """
    if outdir.exists() and (not outdir.is_dir() or any(outdir.iterdir())):
        raise UsageError(f"{outdir}: is not an empty directory; name another one")
    _git(tree, "init", "--quiet")
    _git(tree, "add", "--all")
    _git(tree, "commit", "--quiet", "--allow-empty", f"--message={base}")
    try:
        _git(tree, "am", "--quiet", *(str(patch.resolve()) for patch in patches))
    except LaunchError as error:
        raise SetupError(f"the series does not apply to {base}\n{error}") from error
    target = outdir.resolve()
    options = ["--cover-letter"] if cover else []
    said = _git(
        tree,
        *(
            "format-patch",
            "--thread",
            "--no-signature",
            "--zero-commit",
            "--subject-prefix=RFC PATCH",
        ),
        *(*options, f"--output-directory={target}", f"-{len(patches)}"),
    )
    mails = [Path(line) for line in said.splitlines()]
    if cover:
        _fill_cover(mails[0], cover)
    return mails


def _fill_cover(mail: Path, cover: str) -> None:
    subject, _, text = cover.partition("\n\n")
    draft = mail.read_text()
    mail.write_text(draft.replace(SUBJECT_HERE, subject).replace(TEXT_HERE, text.rstrip()))


def _git(tree: Path, *words: str) -> str:
    environment = {**os.environ, **_ENVIRONMENT}
    return run_tool(["git", *_IDENTITY, *words], what=f"git {words[0]}", cwd=tree, env=environment)


if __name__ == "__main__":
    sys.exit(main())

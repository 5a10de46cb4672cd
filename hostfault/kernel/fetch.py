"""Debian packages, fetched and verified by an apt of our own.

It has its own sources, lists and cache, and trusts the Debian archive keys only, so it works the
same on every Debian and Ubuntu and never touches the system's apt. What it accepts is signed:
apt checks the signature of the suite's index, and by its hashes every package.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import CacheMissError, LaunchError, SetupError
from hostfault.plumbing.packages import run_tool

log = logging.getLogger(__name__)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DOWNLOAD_PATIENCE = 1800.0  # seconds for one run of apt-get


def mirror() -> str:
    """The Debian mirror: ``$HOSTFAULT_MIRROR``, or the one that finds a near one by itself."""
    return os.environ.get("HOSTFAULT_MIRROR", "http://deb.debian.org/debian")


def archive(suite: str) -> str:
    """Where a suite is: Debian has its security suites in an archive beside the mirror's."""
    return f"{mirror().rstrip('/')}-security" if suite.endswith("-security") else mirror()


def fetch_packages(cache: Cache, suite: str, packages: Sequence[str]) -> Path:
    """A directory with the content of some packages of a suite, e.g. headers or sources.

    Raises :class:`CacheMissError` if they are not cached and cannot be fetched, and
    :class:`SetupError` if the suite does not have one of them.
    """
    key = key_of({"mirror": mirror(), "suite": suite, "packages": " ".join(sorted(packages))})
    return cache.obtain("packages", key, lambda place: unpack(place, suite, packages))


def fetch_source(cache: Cache, suite: str, package: str) -> Path:
    """A directory with the files of a source package of a suite, as the mirror has them.

    Raises as :func:`fetch_packages` does.
    """
    key = key_of({"mirror": mirror(), "suite": suite, "source": package})

    def download(place: Path) -> None:
        log.info("fetching the source of %s from %s", package, suite)
        work = place / ".apt"
        try:
            environment = _private_apt(work, suite, "deb-src")
            _update(environment, package, suite)
            line = ["source", "--only-source", "--download-only", package]
            _download(environment, place, line, [package], suite)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    return cache.obtain("packages", key, download)


def unpack(place: Path, suite: str, packages: Sequence[str]) -> None:
    """Download packages and unpack their files (not their scripts) below ``place``."""
    wanted = ", ".join(packages)
    log.info("fetching %s from %s", wanted, suite)
    work = place / ".apt"
    try:
        environment = _private_apt(work, suite)
        _update(environment, wanted, suite)
        line = ["download", *packages]
        _download(environment, work / "packages", line, packages, suite)
        for package in sorted((work / "packages").glob("*.deb")):
            run_tool(
                ["dpkg-deb", "--extract", str(package), str(place)], what=f"unpacking {package}"
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _private_apt(work: Path, suite: str, kind: str = "deb") -> dict[str, str]:
    """Make an apt with state of its own, and return the environment that selects it.

    ``kind`` is the kind of packages that it knows, as in sources.list(5).
    """
    if not KEYRING.exists():
        raise SetupError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    for folder in ("state/lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(
        f"{kind} [arch=amd64 signed-by={KEYRING}] {archive(suite)} {suite} main\n"
    )
    settings = {
        "Dir::State": f"{work}/state",
        "Dir::State::status": f"{work}/status",
        "Dir::Cache": f"{work}/cache",
        "Dir::Etc::sourcelist": f"{work}/sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",  # the cache need not be readable for user _apt
        "APT::Update::Error-Mode": "any",  # otherwise a dead network is only a warning
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    configuration = work / "apt.conf"
    configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    return {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C.UTF-8"}


def _update(environment: dict[str, str], wanted: str, suite: str) -> None:
    try:
        run_tool(
            ["apt-get", "-q", "update"],
            what="apt-get update",
            timeout=DOWNLOAD_PATIENCE,
            env=environment,
        )
    except LaunchError as error:
        raise explained(error, wanted, suite) from error


def explained(error: LaunchError, wanted: str, suite: str) -> Exception:
    """What a person can do about an ``apt-get update`` that failed for lack of ``wanted``."""
    if "No space left on device" in error.log_tail:
        return error
    if "is not signed" in error.log_tail or "BADSIG" in error.log_tail:
        return SetupError(
            f"the signature of {suite} at {archive(suite)} could not be verified, so {wanted} "
            f"was not fetched: apt-get install --only-upgrade debian-archive-keyring\n{error}"
        )
    return CacheMissError(
        f"not in the cache: {wanted}; and {suite} at {archive(suite)} cannot be read: "
        f"connect to the network (HOSTFAULT_MIRROR names another mirror)\n{error}"
    )


def _download(
    environment: dict[str, str],
    place: Path,
    line: Sequence[str],
    packages: Sequence[str],
    suite: str,
) -> None:
    try:
        run_tool(
            ["apt-get", "-q", *line],
            what=f"apt-get {line[0]}",
            timeout=DOWNLOAD_PATIENCE,
            env=environment,
            cwd=place,
        )
    except LaunchError as error:
        if re.search("Unable to (?:locate|find a source) package", error.log_tail):
            raise SetupError(
                f"{suite} at {archive(suite)} has not all of {', '.join(packages)} (any more): "
                f"see what it has, and mend kernels/catalog.toml\n{error}"
            ) from error
        if "No space left on device" in error.log_tail:
            raise
        raise CacheMissError(
            f"{', '.join(packages)} could not be downloaded from {archive(suite)}\n{error}"
        ) from error

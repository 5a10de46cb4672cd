"""Which QEMU is used, and what it can do. The QEMUs are small scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.case.model import HostImage, Qemu
from hostfault.host.qemu import confinement, environment_of, find_qemu
from hostfault.plumbing.errors import LaunchError, UsageError

DEVICE = 'name "vhost-user-test-device-pci", bus PCI, desc "vhost-user-test-device"'


def script(path: Path, version: str = "11.1.3", devices: str = DEVICE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"*--version*) echo 'QEMU emulator version {version} (Debian 1:x)' ;;\n"
        f"*help*) echo '{devices}' ;;\n"
        "esac\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def image(tmp_path: Path) -> HostImage:
    """An image whose loader is the script: it runs whatever program it is given."""
    script(tmp_path / "root/lib64/ld-linux-x86-64.so.2")
    return HostImage("key", tmp_path / "disk", tmp_path / "root")


def test_the_images_qemu_is_started_by_its_own_loader(image: HostImage) -> None:
    qemu = find_qemu("image", image)
    root = str(image.root)
    assert qemu.version == "11.1.3"
    assert qemu.argv == (
        f"{root}/lib64/ld-linux-x86-64.so.2",
        "--inhibit-cache",
        "--library-path",
        f"{root}/usr/lib/x86_64-linux-gnu",
        f"{root}/usr/bin/qemu-system-x86_64",
    )


def test_the_images_qemu_gets_nothing_of_the_callers_environment(
    image: HostImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMU_MODULE_DIR", "/usr/lib/x86_64-linux-gnu/qemu")
    assert "QEMU_MODULE_DIR" not in environment_of(find_qemu("image", image))
    mine = find_qemu(str(script(tmp_path / "qemu")), None)
    assert "QEMU_MODULE_DIR" in environment_of(mine), "a build of one's own may need it"


def test_the_systems_qemu_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(tmp_path / "bin/qemu-system-x86_64", version="9.2")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert find_qemu("system", None) == Qemu("system", "9.2", (str(program),))


def test_a_qemu_can_be_given_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = script(tmp_path / "my qemu")
    monkeypatch.chdir(tmp_path)
    assert find_qemu("./my qemu", None) == Qemu("./my qemu", "11.1.3", (str(program),))


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("/nonexistent/qemu", "no such program; install it"),
        ("latest", "give image, system, or a path"),
        ("image", "needs the host image"),
    ],
)
def test_a_qemu_that_does_not_exist_is_told_plainly(choice: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        find_qemu(choice, None)


def test_no_system_qemu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match="apt-get install qemu-system-x86"):
        find_qemu("system", None)


def dying(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho libfoo.so: cannot open >&2\nexit 127\n")
    path.chmod(0o755)
    return path


def test_a_named_qemu_that_dies_at_start_shows_its_last_words(tmp_path: Path) -> None:
    program = dying(tmp_path / "qemu")
    with pytest.raises(UsageError, match=r"not a QEMU that runs here\n(?s:.*)cannot open"):
        find_qemu(str(program), None)


def test_the_images_qemu_that_dies_at_start_is_nobodys_choice(tmp_path: Path) -> None:
    dying(tmp_path / "root/lib64/ld-linux-x86-64.so.2")
    with pytest.raises(LaunchError, match="cannot open") as caught:
        find_qemu("image", HostImage("key", tmp_path / "disk", tmp_path / "root"))
    assert caught.value.code == 127


@pytest.mark.parametrize("words", ["", "hello"])
def test_a_program_that_is_no_qemu_is_refused(tmp_path: Path, words: str) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho {words}\n")
    program.chmod(0o755)
    with pytest.raises(UsageError, match=r"--qemu .*: not a QEMU(?s:.*)is this QEMU"):
        find_qemu(str(program), None)


HELP = """-sandbox on[,obsolete=allow|deny]
                Enable seccomp
-run-with [async-teardown=on|off]
          [,exit-with-parent=on|off][,user=username|uid:gid]
                Set miscellaneous
-more
"""


def with_help(tmp_path: Path, text: str) -> Qemu:
    """A QEMU that prints that help; as in one's, an option stands at the beginning of a line."""
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\ncat <<'END'\nusage: qemu\n{text}END\n")
    path.chmod(0o755)
    return Qemu(str(path), "11.1.3", (str(path),))


def test_a_qemu_gets_a_filter_and_another_user_before_its_guest_runs(tmp_path: Path) -> None:
    qemu = with_help(tmp_path, HELP)
    words = confinement(qemu, 61234)
    assert words[words.index("-run-with") + 1] == "user=61234:61234"
    assert "elevateprivileges" not in words[words.index("-sandbox") + 1]  # it has to change users
    words = confinement(qemu, None)
    assert "-run-with" not in words
    assert words[words.index("-sandbox") + 1].endswith(
        ",spawn=deny,resourcecontrol=deny,elevateprivileges=deny"
    )


def test_a_qemu_without_seccomp_goes_without_and_one_that_stays_root_is_refused(
    tmp_path: Path,
) -> None:
    assert confinement(with_help(tmp_path, "-more\n"), None) == ()
    with pytest.raises(UsageError, match="cannot give up root's rights"):
        confinement(with_help(tmp_path, HELP.replace(",user=username", "")), 61234)

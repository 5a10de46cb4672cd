"""What the emulated host's first process says about a module that the kernel refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hostfault.plumbing.packages import find_tool
from hostfault.plumbing.project import IMAGES

TOOLS = ("awk", "cat", "head", "sed")  # the real ones; all else only pretends
# The loader: it logs what the file beside the module says, and that is also why it refuses.
INSMOD = """#!/bin/sh
[ -e "$1.refused" ] || exit 0
cat "$1.refused" "$1.refused" >>KMSG  # insmod tries twice
echo "insmod: can't insert '$1': Invalid argument" >&2
exit 1
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A place with two modules, and programs that do nothing to this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_ins = {
        "insmod": INSMOD.replace("KMSG", f"{tmp_path}/kmsg"),
        "dmesg": f"#!/bin/sh\nexec sed 's/^/[    3.297876] /' {tmp_path}/kmsg\n",
        "poweroff": "#!/bin/sh\necho powered off\nkill -9 $PPID\n",
        "switch_root": "#!/bin/sh\necho went on\n",
        **dict.fromkeys(("mount", "mkdir", "cp", "ip", "hostname"), "#!/bin/sh\n"),
    }
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in TOOLS:
        (programs / name).symlink_to(find_tool(name))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/order").write_text("kvm.ko -\nkvm-amd.ko -\n")
    (tmp_path / "kmsg").write_text("Linux version 6.6.6\nan older line\n")
    return tmp_path


def boot(machine: Path) -> list[str]:
    """What the init prints; it can call nothing but the stand-ins."""
    script = (IMAGES / "host/init").read_text()
    for path in ("/modules/", "/dev/kmsg"):
        script = script.replace(path, f"{machine}{path.replace('/dev', '')}")
    # The log is a file here, to which each line is added.
    script = script.replace(f">{machine}/kmsg", f">>{machine}/kmsg")
    done = subprocess.run(
        ["/bin/sh"],
        input=script,
        env={"PATH": f"{machine}/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.splitlines()


def test_modules_that_load_are_loaded_in_silence(machine: Path) -> None:
    assert boot(machine) == ["went on"]


def test_all_that_the_kernel_said_about_a_refused_module_is_told(machine: Path) -> None:
    said = [
        "kvm_amd: Unknown symbol kvm_one (err -2)",
        "kvm_amd: Unknown symbol kvm_two (err -2)",
    ]
    (machine / "modules/kvm-amd.ko.refused").write_text("".join(f"{line}\n" for line in said))
    path = machine / "modules/kvm-amd.ko"
    assert boot(machine) == [
        f"HOSTFAULT-ERROR cannot load kvm-amd.ko: insmod: can't insert '{path}': Invalid argument",
        *(f"HOSTFAULT-ERROR {line}" for line in said),
        "powered off",
    ]


def test_what_was_logged_about_another_module_is_not_told(machine: Path) -> None:
    (machine / "modules/kvm.ko.refused").write_text("kvm: version magic 'a' should be 'b'\n")
    lines = boot(machine)
    assert lines[1:] == ["HOSTFAULT-ERROR kvm: version magic 'a' should be 'b'", "powered off"]


def test_a_long_log_is_cut_short(machine: Path) -> None:
    said = "".join(f"kvm: Unknown symbol x{number} (err -2)\n" for number in range(500))
    (machine / "modules/kvm.ko.refused").write_text(said)
    lines = boot(machine)
    assert len(lines) == 22
    assert lines[-1] == "powered off"

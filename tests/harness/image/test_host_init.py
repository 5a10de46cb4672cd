"""The emulated host's first process: the modules that it loads, and what it says of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hostfault.plumbing.packages import find_tool
from hostfault.plumbing.project import IMAGES

TOOLS = ("awk", "cat", "head", "sed", "tr")  # the real ones; all else only pretends
# The loader: it logs what the file beside the module says, and that is also why it refuses.
INSMOD = """#!/bin/sh
echo "$@" >>LOADED
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
        "insmod": INSMOD.replace("KMSG", f"{tmp_path}/kmsg").replace(
            "LOADED", f"{tmp_path}/loaded"
        ),
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
    (tmp_path / "cmdline").write_text("console=ttyS0 quiet\n")
    (tmp_path / "kmsg").write_text("Linux version 6.6.6\nan older line\n")
    return tmp_path


def boot(machine: Path) -> list[str]:
    """What the init prints; it can call nothing but the stand-ins."""
    script = (IMAGES / "host/init").read_text()
    for path in ("/modules/", "/dev/kmsg"):
        script = script.replace(path, f"{machine}{path.replace('/dev', '')}")
    script = script.replace("/proc/cmdline", f"{machine}/cmdline")
    script = script.replace("/sys/module/", f"{machine}/sys/")
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


def test_a_module_gets_the_parameters_that_the_kernels_command_line_has_for_it(
    machine: Path,
) -> None:
    words = "quiet kvm_amd.npt=0 kvm_amd.avic=1 kvm.tdp_mmu=0 kvm_amd.=1 other.npt=1 kvm_amd.bare"
    (machine / "cmdline").write_text(f"{words}\n")
    for name in ("kvm_amd/parameters/npt", "kvm_amd/parameters/avic", "kvm/parameters/tdp_mmu"):
        (machine / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / "sys" / name).touch()
    assert boot(machine) == ["went on"]
    assert (machine / "loaded").read_text().splitlines() == [
        f"{machine}/modules/kvm.ko tdp_mmu=0",
        f"{machine}/modules/kvm-amd.ko npt=0 avic=1",
    ]


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("kvm_amd.nested_paging=0", "kvm_amd has no parameter nested_paging"),
        ("kvm_intel.ept=0", "kvm_intel has no parameter ept"),  # a module that is not loaded
    ],
)
def test_a_parameter_that_a_module_lacks_ends_the_boot(
    machine: Path, word: str, complaint: str
) -> None:
    (machine / "sys/kvm_amd/parameters").mkdir(parents=True)
    (machine / "cmdline").write_text(f"quiet {word}\n")
    assert boot(machine) == [f"HOSTFAULT-ERROR {complaint}", "powered off"]

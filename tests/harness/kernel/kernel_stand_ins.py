"""What stands in for a kernel source and its build root where no compiler runs.

The root makes "modules" out of KVM's source, so that what was built can be told from what it
was built of.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostfault.kernel import kvm_only
from hostfault.kernel.buildroot import BuildRoot
from hostfault.kernel.catalog import CatalogEntry
from hostfault.kernel.source import files_of, is_kvm

RELEASE = "6.6.6+test-amd64"
ENTRY = CatalogEntry("6.6", RELEASE, "suite", ("linux-image-test",))
CONFIG = "CONFIG_KVM=m\nCONFIG_MODULE_SIG=y\nCONFIG_SMP=y\n"
MAKEFILE = "VERSION = 6\nPATCHLEVEL = 6\nSUBLEVEL = 6\nEXTRAVERSION =\nNAME = Test\n"
X86 = "arch/x86/kvm/x86.c"
KCONFIG = "arch/x86/kvm/Kconfig"
HOST = "arch/x86/include/asm/kvm_host.h"
PMU = "struct kvm_pmu {\n\tu64 counters[MAX_COUNTERS];\n};\n"
SOURCE = {
    "Makefile": MAKEFILE,
    "Kbuild": "",
    "Documentation/virt/kvm/api.rst": "words\n",
    "arch/arm64/kvm/arm.c": "int arm;\n",
    X86: "int x86;\n",
    KCONFIG: "config KVM\n\ttristate\n",
    HOST: "struct kvm_vcpu_arch {\n\tint a;\n};\n#define MAX_COUNTERS 8\n" + PMU,
    "include/linux/kvm_types.h": "typedef int gfn_t;\n",
    "drivers/net/driver.c": "int driver;\n",
    "include/linux/kvm_host.h": "struct kvm;\n",
    "include/linux/mm.h": "struct page;\n",
    "mm/gup.c": "int gup;\n",
    "scripts/mod/modpost.c": "int main;\n",
    "virt/kvm/kvm_main.c": "int main;\n",
}
PATCH = f"--- a/{X86}\n+++ b/{X86}\n@@ -1 +1 @@\n-int x86;\n+int patched;\n"


def write(tree: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


@dataclass(frozen=True)
class FakeRoot(BuildRoot):
    """Makes files as a kernel's make would, out of what it is given."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    dropped: str = ""  # an option that no configuration takes

    def make(self, tree: Path, *words: str, what: str, patience: float) -> str:
        self.calls.append(words)
        tree.with_name(f"{tree.name}.log").touch()
        if words[-1] in ("olddefconfig", "allnoconfig"):
            self._configure(tree, words)
        elif "modules_prepare" in words:
            write(tree, {"include/generated/utsrelease.h": RELEASE})
        elif "M=arch/x86/kvm" in words:
            self._modules(tree, tree / "arch/x86/kvm")
        elif "bzImage" in words:
            self._modules(tree, tree / "arch/x86/kvm")
            image = "kernel of " + (tree / "mm/gup.c").read_text()
            release = "6.6.6-hostfault\n"
            write(tree, {"arch/x86/boot/bzImage": image, "Module.symvers": "symbols\n"})
            write(tree, {"include/config/kernel.release": release})
        elif "modules_install" in words:
            place = tree / "hostfault-installed/lib/modules/6.6.6-hostfault/kernel/arch/x86/kvm"
            place.mkdir(parents=True)
            compressed = "CONFIG_MODULE_COMPRESS=y" in (tree / ".config").read_text()
            shutil.copy(
                tree / "arch/x86/kvm/kvm.ko", place / ("kvm.ko.xz" if compressed else "kvm.ko")
            )
        return ""

    def _configure(self, tree: Path, words: Sequence[str]) -> None:
        merged = tree / "hostfault.config"
        config = tree / ".config"
        source = merged if words[-1] == "allnoconfig" else config
        lines = [line for line in source.read_text().splitlines() if line != self.dropped]
        config.write_text("".join(f"{line}\n" for line in lines))

    def _modules(self, tree: Path, place: Path) -> None:
        names = sorted(filter(is_kvm, files_of(tree)))
        identity = hashlib.sha1("".join((tree / name).read_text() for name in names).encode())
        note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0" + identity.digest()
        for name in kvm_only.MODULES:
            (place / name).write_bytes(b"\x7fELF" + note)


def archive_of(files: dict[str, str]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"linux-source-6.6/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("linux-source-6.6/scripts/link")
        link.type, link.linkname = tarfile.SYMTYPE, "mod/modpost.c"
        archive.addfile(link)
    return sink.getvalue()


def identity_of(files: dict[str, str]) -> str:
    """The build id that :class:`FakeRoot` gives to the KVM of these files."""
    names = sorted(filter(is_kvm, files))
    return hashlib.sha1("".join(files[name] for name in names).encode()).hexdigest()

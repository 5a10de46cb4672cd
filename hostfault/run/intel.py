"""What the machine in Bochs needs to be had: the program, an initramfs, the files that it boots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hostfault.case.model import HostImage, Kernel
from hostfault.host.bochs import COMMAND_LINE, MEMORY, BochsSpec
from hostfault.image import host_initramfs
from hostfault.image.bochs import bochs
from hostfault.image.bochs_boot import boot_files
from hostfault.image.host import BOCHS_MODULES
from hostfault.kernel.modules import check_has
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.ssh_keys import Identity

KVM = "kvm-intel"


def intel_machine(
    cache: Cache,
    kernel: Kernel,
    image: HostImage,
    identity: Identity,
    load: Mapping[str, Path],
    words: Sequence[str],
) -> BochsSpec:
    """The machine for a kernel; ``load`` is its payload, ``words`` its command line has besides.

    Raises :class:`~hostfault.plumbing.errors.UsageError` for a kernel without Intel's half of KVM
    or one that Bochs cannot enter, and :class:`~hostfault.plumbing.errors.SetupError`.
    """
    check_has(kernel, KVM, "--cpu intel")  # before minutes are spent
    program = bochs(cache)
    initramfs = host_initramfs(
        cache,
        kernel,
        image,
        identity,
        {**load, program.say.name: program.say},
        devices=BOCHS_MODULES,
        kvm=(KVM,),
    )
    line = " ".join((COMMAND_LINE, *words))
    files = boot_files(cache, kernel.image, initramfs, line, program.start, MEMORY)
    return BochsSpec(program, image, kernel, files)

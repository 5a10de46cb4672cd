"""Images: what lies in them, and when they are made anew."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from pathlib import Path

import paramiko
import pytest

from hostfault.case.model import HostImage, Kernel
from hostfault.guest import nesting
from hostfault.image import guest, guest_image, host, host_image, host_initramfs
from hostfault.image.initramfs import lay_out, pack
from hostfault.image.programs import libraries_of
from hostfault.kernel import fetch
from hostfault.kernel.modules import Module
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import CacheMissError, SetupError
from hostfault.plumbing.ssh_keys import Identity, identity

BUSYBOX = "#!/bin/sh\nprintf 'busybox\\nls\\nsh\\n'\n"
LOADER = """#!/bin/sh
printf '\\tlinux-vdso.so.1 (0x1)\\n'
printf '\\tlibz.so.1 => %s/libz.so.1 (0x2)\\n' "$2" "$2"
printf '\\t/lib64/ld-linux-x86-64.so.2 => /elsewhere/ld-linux-x86-64.so.2 (0x3)\\n'
[ "$1" = --library-path ] || [ "$1" = --list ]
"""
# mmdebstrap's last words: it is asked for a tar, and makes one of the directory beside it.
MMDEBSTRAP = """#!/bin/sh
home=$(dirname "$0")
printf '%s\\n' "$@" >>"$home/words"
echo "$TMPDIR" >"$home/room"
if [ -e "$home/broken" ]; then cat "$home/broken" >&2; exit 25; fi
for word in "$@"; do case $word in *.tar) tar -C "$home/tree" -cf "$word" . ;; esac; done
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def keys(cache: Cache) -> Identity:
    return identity(cache)


@pytest.fixture
def image(tmp_path: Path) -> HostImage:
    """A host image with just the files that other images take from it."""
    root = tmp_path / "root"
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for folder in ("usr/bin", "usr/sbin", "lib64", "usr/lib/x86_64-linux-gnu"):
        (root / folder).mkdir(parents=True)
    program(root / "usr/bin/busybox", BUSYBOX)
    program(root / "lib64/ld-linux-x86-64.so.2", LOADER.replace('"$2" "$2"', f"'{libraries}'"))
    (root / "usr/sbin/dropbear").write_text("dropbear")
    (libraries / "libz.so.1").write_text("libz")
    return HostImage("key", tmp_path / "disk", root)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel that has every module asked for, as a file with the module's name in it."""
    modules = tmp_path / "modules"
    modules.mkdir()

    def files(kernel: Kernel, wanted: list[str]) -> list[Module]:
        for name in wanted:
            (modules / f"{name}.ko").write_text(name)
        return [Module(modules / f"{name}.ko", name) for name in wanted]

    monkeypatch.setattr(guest, "modules_for", files)
    monkeypatch.setattr(host, "modules_for", files)
    monkeypatch.setattr("hostfault.kernel.modules.modules_for", files)  # of some_of
    return Kernel("test", "6.6.6", tmp_path / "bzImage", modules, packaged=False)


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def unpacked(archive: Path, target: Path) -> Path:
    target.mkdir()
    line = ["cpio", "--extract", "--quiet", "--make-directories", "--no-preserve-owner"]
    with archive.open("rb") as stream:
        subprocess.run(line, cwd=target, stdin=stream, check=True)
    return target


# --- the parts of an initramfs ------------------------------------------------------------


def test_everything_in_an_initramfs_belongs_to_root(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "a file\nwith a hard name").write_text("x")
    for path in tree.rglob("*"):
        os.chown(path, 0 if os.geteuid() else 12, -1)
    pack(tree, tmp_path / "archive")
    data = (tmp_path / "archive").read_bytes()
    # newc: each header is "070701" and 8-digit hexadecimal fields: ino, mode, uid, gid, ...
    headers = data.split(b"070701")[1:]
    assert len(headers) == 3, "the folder, the file and the trailer"
    assert {header[16:32] for header in headers} == {b"0" * 16}
    assert b"a file\nwith a hard name\0" in data


def test_the_modules_are_listed_in_order_with_the_cpu_flag_that_they_need(
    tmp_path: Path, image: HostImage, keys: Identity
) -> None:
    for name in ("kvm", "kvm-amd"):
        (tmp_path / f"{name}.ko").write_text(name)
    lay_out(
        tmp_path / "tree",
        root=image.root,
        folders=["proc"],
        modules=[Module(tmp_path / f"{name}.ko", name) for name in ("kvm", "kvm-amd")],
        flags={"kvm-amd": "svm"},
        identity=keys,
    )
    assert (tmp_path / "tree/modules/order").read_text() == "kvm.ko -\nkvm-amd.ko svm\n"
    assert (tmp_path / "tree/bin/ls").readlink() == Path("busybox")
    assert stat.S_IMODE((tmp_path / "tree/identity").stat().st_mode) == 0o700


def test_the_loader_and_the_libraries_of_a_program_are_found_in_the_image(image: HostImage) -> None:
    assert [str(path) for path in libraries_of(image.root, "usr/sbin/dropbear")] == [
        "lib64/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libz.so.1",
    ]


# --- the guest ----------------------------------------------------------------------------


def test_the_guest_has_a_probe_an_ssh_server_and_its_modules(
    tmp_path: Path, cache: Cache, kernel: Kernel, image: HostImage, keys: Identity
) -> None:
    made = guest_image(cache, kernel, image, keys)
    tree = unpacked(made.initramfs, tmp_path / "tree")
    for path in ("init", "bin/probe", "sbin/dropbear", "lib64/ld-linux-x86-64.so.2"):
        assert os.access(tree / path, os.R_OK), path
    assert (tree / "usr/lib/x86_64-linux-gnu/libz.so.1").read_text() == "libz"
    assert (tree / "etc/shells").read_text() == "/bin/sh\n"
    assert (tree / "identity/authorized_keys").read_text() == keys.client_public + "\n"
    assert (tree / "identity/host_key").read_bytes() == keys.host_key.read_bytes()
    order = (tree / "modules/order").read_text().split()[::2]
    assert order == [f"{name}.ko" for name in (*guest.GUEST_MODULES, *guest.USEFUL_MODULES)]
    later = (tree / "modules" / Path(nesting.LATER).name).read_text().split()[::2]
    assert later == [f"{name}.ko" for name in guest.NESTED_MODULES]
    assert (tree / "modules" / later[0]).exists()


def test_a_guest_has_the_programs_that_its_backing_needs_with_their_libraries(
    tmp_path: Path, cache: Cache, kernel: Kernel, image: HostImage, keys: Identity
) -> None:
    (image.root / "usr/sbin/mkfs.xfs").write_text("mkfs.xfs")
    made = guest_image(cache, kernel, image, keys, (), ["usr/sbin/mkfs.xfs"])
    tree = unpacked(made.initramfs, tmp_path / "tree")
    assert (tree / "sbin/mkfs.xfs").read_text() == "mkfs.xfs"
    assert (tree / "sbin/dropbear").exists()
    assert made.key != guest_image(cache, kernel, image, keys).key


def test_a_guest_is_made_once_and_anew_when_an_input_changes(
    cache: Cache, kernel: Kernel, image: HostImage, keys: Identity, tmp_path: Path
) -> None:
    first = guest_image(cache, kernel, image, keys)
    assert guest_image(cache, kernel, image, keys) == first
    others = {
        guest_image(cache, kernel, image, keys, extra_modules=["nd_pmem"]).key,
        guest_image(cache, kernel, HostImage("other", image.disk, image.root), keys).key,
        guest_image(cache, kernel, image, identity(Cache(tmp_path / "other"))).key,
    }
    assert len(others | {first.key}) == 4


# --- the host -----------------------------------------------------------------------------


def test_the_hosts_initramfs_carries_its_payload(
    tmp_path: Path, cache: Cache, kernel: Kernel, image: HostImage, keys: Identity
) -> None:
    (tmp_path / "package" / "__pycache__").mkdir(parents=True)
    (tmp_path / "package" / "module.py").write_text("code")
    payload = {"python/package": tmp_path / "package", "file": tmp_path / "package/module.py"}
    archive = host_initramfs(cache, kernel, image, keys, payload)
    tree = unpacked(archive, tmp_path / "tree")
    assert (tree / "payload/python/package/module.py").read_text() == "code"
    assert (tree / "payload/file").read_text() == "code"
    assert not (tree / "payload/python/package/__pycache__").exists()
    assert os.access(tree / "init", os.X_OK)
    assert os.access(tree / "second-init", os.X_OK)
    order = (tree / "modules/order").read_text()
    assert "kvm-amd.ko svm\n" in order
    assert "kvm-intel.ko vmx\n" in order
    assert "virtio_blk.ko -\n" in order

    (tmp_path / "package" / "module.py").write_text("new code")
    assert host_initramfs(cache, kernel, image, keys, payload) != archive


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for mmdebstrap, in a directory of its own."""
    home = tmp_path / "bootstrap"
    (home / "tree/dev").mkdir(parents=True)
    (home / "tree/file").write_text("content")
    (home / "tree/usr/bin").mkdir(parents=True)
    (home / "tree/usr/bin/qemu-system-x86_64").write_text("looks in /var/run/qemu/%s too")
    (home / "tree/usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (home / "tree/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").write_text("the loader")
    (home / "tree/lib64").mkdir()
    loader = home / "tree/lib64/ld-linux-x86-64.so.2"
    loader.symlink_to("../usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    program(home / "mmdebstrap", MMDEBSTRAP)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    return home


def test_the_hosts_disk_is_ext4_that_belongs_to_root_with_room_to_spare(
    bootstrap: Path, cache: Cache
) -> None:
    os.chown(bootstrap / "tree/file", 12 if os.geteuid() == 0 else -1, -1)
    made = host_image(cache)
    assert (made.root / "file").read_text() == "content"
    assert sorted(path.name for path in made.disk.parent.iterdir()) == ["disk.ext4", "root"]

    def ask(request: str) -> str:
        line = ["/usr/sbin/debugfs", "-R", request, made.disk]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout

    assert "User:     0   Group:     0" in ask("stat /file")
    statistics = dict(
        line.split(":", 1) for line in ask("stats").splitlines() if line.count(":") == 1
    )
    free = int(statistics["Free blocks"]) * int(statistics["Block size"])
    assert free > 1 << 30
    assert made.disk.stat().st_blocks * 512 < 100 << 20, "the free space is a hole in the file"


def test_the_hosts_disk_belongs_to_root_where_user_namespaces_are_forbidden(
    bootstrap: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bootstrap / "unshare", "#!/bin/sh\necho not permitted >&2\nexit 1\n")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    made = host_image(cache)
    line = ["/usr/sbin/debugfs", "-R", "stat /file", made.disk]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    assert "User:     0   Group:     0" in said


def test_the_host_image_is_not_made_in_a_directory_that_cannot_hold_it(
    bootstrap: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/proc")
    host_image(cache)
    assert (bootstrap / "room").read_text().strip() in ("/var/tmp", "/tmp")


def test_the_images_qemu_is_turned_away_from_the_machines_files(
    bootstrap: Path, cache: Cache
) -> None:
    made = host_image(cache)
    assert (made.root / "usr/lib/x86_64-linux-gnu/qemu-bundle").samefile(made.root)
    assert "/var/run/qemu" not in (made.root / "usr/bin/qemu-system-x86_64").read_text()


def test_an_image_whose_loader_leads_out_of_it_is_refused(bootstrap: Path, cache: Cache) -> None:
    loader = bootstrap / "tree/lib64/ld-linux-x86-64.so.2"
    loader.unlink()
    loader.symlink_to("/lib/ld-linux-x86-64.so.2")
    with pytest.raises(SetupError, match="leads out of it"):
        host_image(cache)


def test_the_recipe_of_the_host_reaches_mmdebstrap(bootstrap: Path, cache: Cache) -> None:
    host_image(cache)
    words = (bootstrap / "words").read_text().splitlines()
    (included,) = (word for word in words if word.startswith("--include="))
    assert "qemu-system-x86/trixie-backports" in included
    assert "--dpkgopt=path-exclude=/usr/share/doc/*" in words
    assert any("trixie-backports main" in word and str(fetch.KEYRING) in word for word in words)


def test_the_host_image_is_made_once(bootstrap: Path, cache: Cache) -> None:
    first = host_image(cache)
    (bootstrap / "broken").write_text("E: no network")
    assert host_image(cache) == first


def test_no_network_for_the_host_image_is_one_error_that_says_so(
    bootstrap: Path, cache: Cache
) -> None:
    (bootstrap / "broken").write_text(
        "E: Could not resolve\nE: apt-get update --error-on=any failed\n"
    )
    with pytest.raises(CacheMissError, match="connect to the network") as caught:
        host_image(cache)
    assert "Could not resolve" in str(caught.value)


def test_another_failure_of_mmdebstrap_shows_its_last_words(bootstrap: Path, cache: Cache) -> None:
    (bootstrap / "broken").write_text("I: running apt-get update...\nE: run_chroot failed")
    with pytest.raises(SetupError, match="run_chroot failed"):
        host_image(cache)


def test_a_missing_tool_is_asked_for_by_its_package(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostfault.plumbing.packages.shutil.which", lambda *_, **__: None)
    with pytest.raises(SetupError, match="mmdebstrap is missing: apt-get install mmdebstrap"):
        host_image(cache)


# --- the keys -----------------------------------------------------------------------------


def test_the_keys_are_made_once_and_secret(cache: Cache, keys: Identity) -> None:
    assert identity(cache) == keys
    for path in (keys.client_key, keys.host_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_client_key_and_its_public_line_belong_together(keys: Identity) -> None:
    key = paramiko.Ed25519Key.from_private_key_file(str(keys.client_key))
    assert keys.client_public.split()[:2] == [key.get_name(), key.get_base64()]


def test_the_host_key_has_dropbears_format(keys: Identity) -> None:
    data = keys.host_key.read_bytes()
    strings = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        strings.append(data[4 : 4 + length])
        data = data[4 + length :]
    name, halves = strings
    assert name == b"ssh-ed25519"
    public = paramiko.Message()
    public.add_string(name)
    public.add_string(halves[32:])
    assert keys.host_public.split()[1] == paramiko.Ed25519Key(data=public.asbytes()).get_base64()

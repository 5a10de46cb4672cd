"""Kernels: named, fetched, found on the disk, and their modules. No network: apt is a stand-in."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hostfault.case.model import Kernel
from hostfault.kernel import catalog, choose, fetch, resolve
from hostfault.kernel.modules import decompress, modules_for
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import CacheMissError, SetupError, UsageError

RELEASE = "6.6.6-test-amd64"
ENTRY = catalog.CatalogEntry("6.6", RELEASE, "suite", ("linux-image-test",))

# What apt-get does is decided by the directory it lies in: packages/ is the mirror, and a file
# "broken" says what update complains of. Each call is noted in "calls".
APT = """#!/bin/sh
home=$(dirname "$0")
echo "$@" >>"$home/calls"
cat "$APT_CONFIG" >"$home/configuration"
cat "$(dirname "$APT_CONFIG")/sources.list" >"$home/sources"
shift
case $1 in
update) if [ -e "$home/broken" ]; then cat "$home/broken" >&2; exit 100; fi ;;
download)
    shift
    for package in "$@"; do
        cp "$home/packages/$package.deb" . 2>/dev/null ||
            { echo "E: Unable to locate package $package" >&2; exit 100; }
    done ;;
esac
"""


def bzimage(version: str = f"{RELEASE} (somebody@somewhere) #1 SMP") -> bytes:
    """The parts of a bzImage that a boot loader looks at."""
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x400)
    image[0x600 : 0x600 + len(version)] = version.encode()
    return bytes(image)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "apt"
    (home / "packages").mkdir(parents=True)
    (home / "apt-get").write_text(APT)
    (home / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin:/usr/sbin:/sbin")
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(fetch, "KEYRING", keyring)
    monkeypatch.setattr(choose, "load", lambda: {"6.6": ENTRY})
    return home


def add_package(apt: Path, name: str, files: dict[str, bytes]) -> None:
    tree = apt / name
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
    )
    target = apt / "packages" / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", tree, target], check=True, capture_output=True)


def modules_directory(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "modules.dep").touch()
    return path


# --- the catalogue ------------------------------------------------------------------------


def test_the_catalogue_is_ordered_from_old_to_new() -> None:
    def age(release: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", release)]

    releases = [entry.release for entry in catalog.load().values()]
    assert releases == sorted(releases, key=age)
    assert catalog.newest() == "7.3.4"


def test_every_catalogued_kernel_brings_an_image_and_modules() -> None:
    for entry in catalog.load().values():
        kinds = {package.removesuffix("-" + entry.release) for package in entry.packages}
        assert kinds in ({"linux-image"}, {"linux-base", "linux-binary", "linux-modules"})


def test_the_span_of_the_catalogue_is_the_one_that_the_project_promises() -> None:
    names = set(catalog.load())
    assert {"6.1", "6.12", "6.16", "6.17", "6.18", "7.2", "7.3.4"} <= names


# --- fetching -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"boot": f"boot/vmlinuz-{RELEASE}", "modules": "lib/modules"}, id="old"),
        pytest.param({"boot": f"usr/lib/modules/{RELEASE}/vmlinuz", "modules": "usr/lib/modules"}),
    ],
)
def test_a_packaged_kernel_looks_the_same_however_it_was_packaged(
    apt: Path, cache: Cache, layout: dict[str, str]
) -> None:
    files = {layout["boot"]: bzimage(), f"{layout['modules']}/{RELEASE}/modules.builtin": b""}
    add_package(apt, "linux-image-test", files)
    kernel = resolve("6.6", cache)
    assert (kernel.name, kernel.release, kernel.packaged) == ("6.6", RELEASE, True)
    assert kernel.image.read_bytes() == bzimage()
    assert kernel.modules.name == RELEASE
    assert (kernel.modules / "modules.dep.bin").exists(), "depmod has been through it"


def test_a_cached_kernel_needs_no_network(apt: Path, cache: Cache) -> None:
    files = {f"boot/vmlinuz-{RELEASE}": bzimage(), f"lib/modules/{RELEASE}/modules.builtin": b""}
    add_package(apt, "linux-image-test", files)
    first = resolve("6.6", cache)
    (apt / "calls").unlink()
    (apt / "broken").write_text("E: no network")
    assert resolve("6.6", cache) == first
    assert not (apt / "calls").exists()


def test_apt_is_told_to_verify_with_the_archive_keyring_and_to_fail_on_any_error(
    apt: Path, cache: Cache
) -> None:
    add_package(apt, "headers", {"usr/src/x": b"x"})
    tree = fetch.fetch_packages(cache, "suite", ["headers"])
    assert (tree / "usr/src/x").read_bytes() == b"x"
    assert sorted(path.name for path in tree.iterdir()) == ["usr"], "apt's own files are gone"
    configuration = (apt / "configuration").read_text()
    assert 'APT::Update::Error-Mode "any";' in configuration
    assert 'Dir::Etc::sourceparts "/dev/null";' in configuration
    assert "allow-insecure" not in configuration.lower()


def test_no_network_and_nothing_cached_is_one_error_that_says_so(apt: Path, cache: Cache) -> None:
    (apt / "broken").write_text("E: Could not resolve 'deb.debian.org'")
    with pytest.raises(CacheMissError, match="linux-image-test") as caught:
        resolve("6.6", cache)
    assert "Could not resolve 'deb.debian.org'" in str(caught.value)
    assert not [path for path in cache.root.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_signature_that_cannot_be_verified_is_not_called_a_dead_network(
    apt: Path, cache: Cache
) -> None:
    (apt / "broken").write_text("E: The repository 'http://deb suite InRelease' is not signed.")
    with pytest.raises(SetupError, match="could not be verified") as caught:
        resolve("6.6", cache)
    assert not isinstance(caught.value, CacheMissError)


def test_a_package_that_left_the_mirror_is_named(apt: Path, cache: Cache) -> None:
    with pytest.raises(SetupError, match="linux-image-test"):
        resolve("6.6", cache)


def test_a_kernel_of_a_security_suite_comes_from_its_own_archive(
    apt: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTFAULT_MIRROR", "http://mirror/debian/")
    for suite in ("trixie", "trixie-security"):
        with pytest.raises(SetupError, match="has not all of headers") as caught:
            fetch.fetch_packages(cache, suite, ["headers"])
        place = "http://mirror/debian-security" if "-" in suite else "http://mirror/debian/"
        assert f"{suite} at {place} has not all" in str(caught.value)
        assert f"{place} {suite} main" in (apt / "sources").read_text()


def test_a_missing_keyring_is_asked_for(
    apt: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "KEYRING", Path("/nonexistent/keyring.gpg"))
    with pytest.raises(SetupError, match="apt-get install debian-archive-keyring"):
        resolve("6.6", cache)


# --- kernels on the disk ------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones(cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"'5\.4'.* 6\.1\.170, 6\.1, .*bzImage"):
        resolve("5.4", cache)


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("bzImage", "modules"),
        ("bzImage", f"modules/lib/modules/{RELEASE}"),
        ("bzImage", f"lib/modules/{RELEASE}"),
        (f"boot/vmlinuz-{RELEASE}", f"lib/modules/{RELEASE}"),
        (f"usr/lib/modules/{RELEASE}/vmlinuz", f"usr/lib/modules/{RELEASE}"),
    ],
)
def test_the_modules_of_a_bzimage_are_found_beside_it(
    tmp_path: Path, cache: Cache, image: str, modules: str
) -> None:
    modules_directory(tmp_path / modules)
    (tmp_path / image).parent.mkdir(exist_ok=True)
    (tmp_path / image).write_bytes(bzimage())
    assert resolve(str(tmp_path / image), cache) == Kernel(
        name=str(tmp_path / image),
        release=RELEASE,
        image=tmp_path / image,
        modules=tmp_path / modules,
        packaged=False,
    )


@pytest.mark.parametrize("below", ["", f"lib/modules/{RELEASE}"])
def test_the_modules_directory_can_be_given(tmp_path: Path, cache: Cache, below: str) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    expected = modules_directory(tmp_path / "elsewhere" / below)
    kernel = resolve(f"{tmp_path}/bzImage:{tmp_path}/elsewhere", cache)
    assert (kernel.image, kernel.modules) == (tmp_path / "bzImage", expected)


def test_a_path_may_be_relative(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    modules_directory(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    assert resolve("bzImage", cache).image == tmp_path / "bzImage"


def test_a_bzimage_without_modules_says_where_they_belong(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    with pytest.raises(UsageError, match="no modules beside it: run `make modules_install"):
        resolve(str(tmp_path / "bzImage"), cache)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a bzImage"),
        (b"\x7fELF" + bytes(0x1000), r"an ELF file: give arch/x86/boot/bzImage"),
        (bzimage(version=""), "names no version"),
    ],
)
def test_a_file_that_is_no_bzimage_is_refused(
    tmp_path: Path, cache: Cache, content: bytes, complaint: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        resolve(str(tmp_path / "file"), cache)


def test_a_path_that_cannot_be_read_says_why(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        resolve(str(tmp_path / "nothing"), cache)
    with pytest.raises(UsageError, match="Is a directory"):
        resolve(str(tmp_path), cache)


def test_further_forms_of_naming_a_kernel_can_be_added(cache: Cache) -> None:
    kernel = Kernel("tree:x", RELEASE, Path("image"), Path("modules"), packaged=False)
    form = choose.Form("tree:PATH", lambda text: text.startswith("tree:"), lambda *_: kernel)
    assert choose.resolve_as("tree:x", cache, [form]) is kernel
    with pytest.raises(UsageError, match="tree:PATH"):
        choose.resolve_as("nonsense", cache, [form])


# --- modules ------------------------------------------------------------------------------


@pytest.fixture
def compile_module(tmp_path: Path) -> Callable[..., None]:
    """Makes object files that depmod takes for modules, for it reads exports and imports only."""

    def make(path: Path, exports: str = "", imports: str = "") -> None:
        source = 'char info[] __attribute__((section(".modinfo"))) = "license=GPL";\n'
        if exports:
            section = '__attribute__((section("__ksymtab_strings")))'
            source += f'char exported[] {section} = "{exports}";\n'
        if imports:
            source += f"void {imports}(void); void use(void) {{ {imports}(); }}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "module.c").write_text(source)
        subprocess.run(["gcc", "-c", "-o", path, tmp_path / "module.c"], check=True)

    return make


@pytest.fixture
def kernel(tmp_path: Path, compile_module: Callable[..., None]) -> Kernel:
    """A kernel whose module "top" needs "base", and which has "inside" built in."""
    modules = tmp_path / "lib" / "modules" / RELEASE
    compile_module(modules / "kernel" / "base.ko", exports="base_symbol")
    compile_module(modules / "kernel" / "top-most.ko", imports="base_symbol")
    (modules / "modules.builtin").write_text("kernel/inside.ko\n")
    (modules / "modules.order").write_text("kernel/base.ko\nkernel/top-most.ko\n")
    depmod(tmp_path)
    return Kernel("test", RELEASE, tmp_path / "bzImage", modules, packaged=False)


def depmod(root: Path) -> None:
    subprocess.run(["/usr/sbin/depmod", "--basedir", root, RELEASE], check=True)


def test_what_a_module_needs_comes_before_it(kernel: Kernel) -> None:
    found = modules_for(kernel, ["top-most"])
    assert [module.name for module in found] == ["base.ko", "top-most.ko"]
    assert {module.needed_for for module in found} == {"top-most"}
    assert all(module.file.is_file() for module in found)


def test_what_two_modules_need_is_loaded_once(kernel: Kernel) -> None:
    assert [each.name for each in modules_for(kernel, ["base", "top-most"])] == [
        "base.ko",
        "top-most.ko",
    ]


def test_what_is_built_in_needs_no_file(kernel: Kernel) -> None:
    assert modules_for(kernel, ["inside"]) == []


def test_a_module_in_updates_wins_over_the_stock_one(
    kernel: Kernel, tmp_path: Path, compile_module: Callable[..., None]
) -> None:
    compile_module(kernel.modules / "updates" / "base.ko", exports="base_symbol")
    depmod(tmp_path)
    assert [
        str(each.file.relative_to(kernel.modules)) for each in modules_for(kernel, ["base"])
    ] == ["updates/base.ko"]


def test_a_kernel_without_a_needed_module_is_an_error_that_names_both(kernel: Kernel) -> None:
    with pytest.raises(SetupError, match=f"kernel test .{RELEASE}. has no module kvm"):
        modules_for(kernel, ["kvm"])


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bytes], ids=["xz", "gz", "plain"])
def test_a_module_is_decompressed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "module").write_bytes(pack(b"\x7fELF module"))
    decompress(tmp_path / "module", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"\x7fELF module"


def test_a_module_compressed_by_zstd_is_decompressed(tmp_path: Path) -> None:
    (tmp_path / "module").write_bytes(b"\x7fELF module")
    subprocess.run(["zstd", "-q", tmp_path / "module"], check=True)
    decompress(tmp_path / "module.zst", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"\x7fELF module"

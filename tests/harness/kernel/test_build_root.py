"""The build root, what its compiler says, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_stand_ins import write

from hostfault.kernel import buildroot, kvm_only, packaged
from hostfault.kernel.buildroot import BuildRoot, error_lines
from hostfault.plumbing.errors import HostfaultError, LaunchError, SetupError

ERRORS = """\
  CC      x86.o
                 from apf_error.c:18:
/src/include/linux/list.h:1086:54: note: expected 'struct hlist_node *'
/src/include/linux/hashtable.h:61:30: error: passing argument 2 from incompatible pointer type
   61 |         hlist_add_head(node, &hashtable[key])
      |                              ^~~~~~~~~~~~~~~
apf_error.c:172:17: note: in expansion of macro 'hash_add'
make[3]: *** [/src/scripts/Makefile.build:295: apf_error.o] Error 1
make[3]: *** Waiting for unfinished jobs....
"""

BWRAP = """#!/bin/sh
while :; do
    case $1 in
    --bind) if [ "$3" = /src ]; then tree=$2; fi; shift 3 ;;
    --ro-bind | --setenv) shift 3 ;;
    --dev | --proc | --tmpfs | --chdir) shift 2 ;;
    --*) shift ;;
    *) break ;;
    esac
done
cd "$tree" && exec "$@"
"""


@pytest.fixture
def entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], str]:
    """Runs a line of shell in a build root whose bubblewrap is a stand-in."""
    stand_in = tmp_path / "bin/bwrap"
    write(tmp_path, {"bin/bwrap": BWRAP})
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    (tmp_path / "tree").mkdir()
    root = BuildRoot("suite", tmp_path / "root", "gcc 14\n", tmp_path / "ccache")

    def enter(line: str, patience: float = 10.0) -> str:
        return root.run(tmp_path / "tree", ["sh", "-c", line], what="a try", patience=patience)

    return enter


def test_a_program_runs_in_the_tree(entered: Callable[[str], str], tmp_path: Path) -> None:
    assert "hello" in entered("echo hello; touch here")
    assert (tmp_path / "tree/here").exists()


def test_a_failed_build_shows_the_compilers_lines(entered: Callable[[str], str]) -> None:
    with pytest.raises(LaunchError) as caught:
        entered("seq 1000; echo 'a.c:1:2: error: no such thing' >&2; exit 2")
    assert caught.value.code == 2
    assert caught.value.argv[0] == "sh"  # what failed, not how the build root was entered
    assert caught.value.log_tail == "a.c:1:2: error: no such thing"


def test_a_machine_that_allows_no_build_root_is_not_the_sources_fault(
    entered: Callable[[str], str],
) -> None:
    with pytest.raises(SetupError, match=r"may not make a build root(?s:.)*No permissions"):
        entered("echo bwrap: No permissions to create a new namespace; exit 1")


def test_a_build_that_hangs_is_ended_and_says_how_far_it_came(
    entered: Callable[[str, float], str],
) -> None:
    with pytest.raises(LaunchError, match=r"still running after 1 s(?s:.)*so far"):
        entered("echo so far; exec sleep 1000", 1.0)


def test_a_build_enters_with_neither_network_nor_the_persons_settings(tmp_path: Path) -> None:
    root = BuildRoot("suite", tmp_path / "root", "gcc 14\n", tmp_path / "ccache")
    argv = root.argv(tmp_path / "tree", ["make"])
    assert argv[0].endswith("bwrap")
    assert {"--unshare-all", "--clearenv", "--die-with-parent"} <= set(argv)
    assert "--share-net" not in argv
    assert argv[-1] == "make"


def test_of_a_compilers_output_the_errors_are_shown_with_their_source_lines() -> None:
    assert error_lines(ERRORS).splitlines() == [
        "/src/include/linux/hashtable.h:61:30: error: passing argument 2 from incompatible pointer"
        " type",
        "   61 |         hlist_add_head(node, &hashtable[key])",
        "      |                              ^~~~~~~~~~~~~~~",
        "make[3]: *** [/src/scripts/Makefile.build:295: apf_error.o] Error 1",
        "make[3]: *** Waiting for unfinished jobs....",
    ]


@pytest.mark.parametrize(
    "line",
    [
        'ERROR: modpost: "kvm_missing" [kvm.ko] undefined!',
        "x86.c:(.text+0x12): undefined reference to `nothing'",
        "x86.c:3:10: fatal error: none.h: No such file or directory",
        "cc1: internal compiler error: Killed signal terminated program cc1",
        "write error: No space left on device",
    ],
)
def test_errors_of_every_kind_are_found(line: str) -> None:
    assert error_lines(f"noise\n{line}\nnoise\n") == line


def test_output_without_errors_is_shown_from_its_end() -> None:
    assert error_lines("\n".join(map(str, range(100))), limit=3) == "97\n98\n99"


def test_many_errors_are_cut_short() -> None:
    shown = error_lines("\n".join(f"a.c:{n}:1: error: x" for n in range(50)), limit=10).splitlines()
    assert len(shown) == 11
    assert shown[-1] == "... and 40 lines more"


def test_versions_are_read_from_what_dpkg_knows() -> None:
    status = "Package: gcc\nStatus: ok\nVersion: 4:14.2\n\nPackage: make\nVersion: 4.4\nX: y\n\n"
    assert buildroot.versions(status, ("gcc", "make", "pahole")) == (
        "gcc 4:14.2\nmake 4.4\npahole absent\n"
    )


def test_a_module_without_a_build_id_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kvm.ko").write_bytes(b"\x7fELF")
    with pytest.raises(HostfaultError, match="has no build id"):
        kvm_only.build_id(tmp_path / "kvm.ko")


@pytest.mark.parametrize(
    "name",
    [
        "kernel/bounds.c",
        "kernel/sched/rq-offsets.c",
        "kernel/time/timeconst.bc",
        "virt/kvm/async_pf.c",
    ],
)
def test_what_a_base_is_prepared_with_is_kept(name: str) -> None:
    assert not packaged._NOT_NEEDED.match(name)


def test_most_of_the_kernel_is_not_needed_for_its_kvm() -> None:
    assert packaged._NOT_NEEDED.match("drivers/net/tun.c")

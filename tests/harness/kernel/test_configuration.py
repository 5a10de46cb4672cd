"""The configuration of whole kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_stand_ins import write

from hostfault.kernel import configuration
from hostfault.kernel.configuration import Option
from hostfault.plumbing.errors import SetupError


def test_an_optional_option_is_asked_for_where_kconfig_has_it(tmp_path: Path) -> None:
    write(tmp_path, {"a.config": "# why\n#: where Kconfig has it\nCONFIG_A=y\nCONFIG_B=y\n"})
    options = configuration.load(tmp_path)

    def names(*known: str) -> list[str]:
        return [option.name for option in configuration.wanted(options, known)]

    assert names("CONFIG_A", "CONFIG_B") == ["CONFIG_A", "CONFIG_B"]
    assert names("CONFIG_B") == ["CONFIG_B"]
    assert names() == ["CONFIG_B"], "what is not optional is asked for, so that its lack is told"


@pytest.mark.parametrize(
    "line",
    [
        'CONFIG_CC_VERSION_TEXT="gcc 15"',
        "CONFIG_GCC_VERSION=150000",
        "CONFIG_CC_HAS_KASAN_GENERIC=y",
        "CONFIG_RUSTC_VERSION=108501",
        "CONFIG_RUST=y",
        'CONFIG_BUILD_SALT="mine"',
        "# CONFIG_B is not set",
        "# Linux/x86 6.6.6 Kernel Configuration",
    ],
)
def test_what_nobody_chose_is_no_difference(line: str) -> None:
    assert configuration.differing(f"CONFIG_A=y\n{line}\n", "CONFIG_A=y\n") == ()


@pytest.mark.parametrize(
    ("mine", "names"),
    [
        ("CONFIG_A=y\nCONFIG_KASAN=y\n", ("CONFIG_KASAN",)),
        ("CONFIG_A=m\n", ("CONFIG_A",)),
        ("# CONFIG_A is not set\n", ("CONFIG_A",)),
        ("CONFIG_A=y\nCONFIG_CC_OPTIMIZE_FOR_SIZE=y\n", ("CONFIG_CC_OPTIMIZE_FOR_SIZE",)),
        ("CONFIG_C=1\n", ("CONFIG_A", "CONFIG_C")),
        ("CONFIG_A=m\nCONFIG_A=y\n", ()),  # Kconfig, too, takes the last one
    ],
)
def test_what_somebody_chose_is_a_difference(mine: str, names: tuple[str, ...]) -> None:
    assert configuration.differing(mine, "CONFIG_A=y\n") == names


@pytest.mark.parametrize(
    "line", ["CONFIG_A", "#CONFIG_A=y", "A=y", "#: from 6.8", "CONFIG_A=y # why"]
)
def test_a_line_that_is_no_option_is_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"a.config": f"{line}\n"})
    if line == "CONFIG_A=y # why":
        assert configuration.load(tmp_path)[0].value == "y # why"  # Kconfig will not take it
        return
    with pytest.raises(ValueError, match=r"a\.config: neither an option nor a comment"):
        configuration.load(tmp_path)


def test_options_that_came_out_otherwise_are_named_all_at_once() -> None:
    options = [
        Option("CONFIG_A", "y", "a.config"),
        Option("CONFIG_B", "m", "b.config"),
        Option("CONFIG_C", "y", "c.config"),
    ]
    with pytest.raises(SetupError) as caught:
        configuration.check(options, "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n")
    assert "CONFIG_B=m (b.config; there it is y)" in str(caught.value)
    assert "CONFIG_C=y (c.config; not there)" in str(caught.value)
    assert "CONFIG_A" not in str(caught.value)


def test_every_option_of_the_project_is_asked_for_once_and_has_a_reason() -> None:
    options = configuration.load()
    names = [option.name for option in options]
    assert len(names) == len(set(names))
    assert {"CONFIG_KVM", "CONFIG_FUSE_DAX", "CONFIG_PVPANIC", "CONFIG_HIST_TRIGGERS"} <= set(names)
    for path in configuration.FRAGMENTS.glob("*.config"):
        assert path.read_text().startswith("# "), f"{path} does not say what it is for"

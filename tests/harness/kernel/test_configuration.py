"""The configuration of whole kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_stand_ins import write

from hostfault.errors import SetupError
from hostfault.kernel import configuration
from hostfault.kernel.configuration import Option


def test_an_option_can_be_for_some_versions_only(tmp_path: Path) -> None:
    write(tmp_path, {"a.config": "# why\n#: from 6.8\n#: until 7.1\nCONFIG_A=y\nCONFIG_B=y\n"})
    options = configuration.load(tmp_path)

    def names(*version: int) -> list[str]:
        return [option.name for option in configuration.wanted_for(options, version)]

    assert names(6, 7, 9) == ["CONFIG_B"]
    assert names(6, 8, 0) == names(7, 1, 5) == ["CONFIG_A", "CONFIG_B"]
    assert names(7, 2, 0) == ["CONFIG_B"]


@pytest.mark.parametrize("line", ["CONFIG_A", "#CONFIG_A=y", "A=y", "CONFIG_A=y # why"])
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

"""QEMU's defect is taken out of what has it, and nothing else is touched."""

import logging
from pathlib import Path

import pytest

from hostfault.image.mend import mend

STORE = bytes.fromhex("89b350c2ffff")  # mov %esi,-0x3db0(%rbx), of Debian's 11.1.3
AROUND = (
    bytes.fromhex("410fb6f4 4489ab80340000"),
    bytes.fromhex("c7838434000000000000 48c78388340000ffffffff f605dd5d575102 0f85c1000000")
    + bytes.fromhex("ba01000000 4889df e879780700"),
)
DEFECT = STORE.join(AROUND)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "qemu-system-x86_64"


def test_the_store_of_the_vector_is_taken_out(program: Path) -> None:
    program.write_bytes(b"before" + DEFECT + b"after")
    assert mend(program)
    mended = program.read_bytes()
    assert mended == b"before" + bytes.fromhex("660f1f440000").join(AROUND) + b"after"


def test_an_exception_that_is_injected_keeps_its_vector(program: Path) -> None:
    exception = DEFECT.replace(bytes.fromhex("ba01000000"), bytes.fromhex("4889ef9090"))
    program.write_bytes(DEFECT + exception)
    assert mend(program)
    assert program.read_bytes().endswith(exception)


@pytest.mark.parametrize(
    "code",
    [b"another compiler's", DEFECT + DEFECT, AROUND[0] + AROUND[1]],
    ids=["none", "two", "no store"],
)
def test_a_program_that_is_not_understood_is_left_alone_and_that_is_said(
    program: Path, code: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    program.write_bytes(code)
    with caplog.at_level(logging.WARNING):
        assert not mend(program)
    assert program.read_bytes() == code
    assert "may be lost" in caplog.text


def test_what_was_mended_is_not_mended_again(program: Path) -> None:
    program.write_bytes(DEFECT)
    assert mend(program)
    assert not mend(program)

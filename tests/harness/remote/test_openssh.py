"""What OpenSSH's configuration says of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.plumbing.errors import UsageError
from hostfault.remote.openssh import Target, way_to

CONFIG = """
Host lab
    HostName kvm.example.org
    Port 2222
    User runner
    IdentityFile ~/keys/lab
    IdentitiesOnly yes
    UserKnownHostsFile /etc/lab/known %d/known
    HostKeyAlias kvm
    ProxyCommand nc %h %p

Host jumped
    ProxyJump gate

Host *
    User somebody
    ProxyCommand none
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ssh://lab", Target("lab")),
        ("ssh://lab/", Target("lab")),
        ("ssh://me@lab:2222", Target("lab", "me", 2222)),
        ("ssh://[::1]:22", Target("::1", None, 22)),
    ],
)
def test_a_machine_is_named_as_in_other_programs(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh:lab", "http://lab", "ssh://lab/path", "ssh://me:secret@lab", "ssh://lab:x"],
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--host "):
        Target.parse(text)


def test_what_the_configuration_says_is_done(home: Path) -> None:
    way = way_to(Target("lab"), home, home / "none")
    assert (way.address, way.port, way.user) == ("kvm.example.org", 2222, "runner")
    assert way.keys == (str(Path("~/keys/lab").expanduser()),)
    assert not way.agent
    assert way.known_as == "kvm"
    assert way.proxy_command == "nc kvm.example.org 2222"
    assert Path("/etc/lab/known") in way.known_hosts


def test_what_a_person_names_comes_first(home: Path) -> None:
    way = way_to(Target("lab", "root", 22), home, home / "none")
    assert (way.user, way.port) == ("root", 22)


def test_a_machine_that_is_not_configured_is_as_with_ssh(home: Path) -> None:
    way = way_to(Target("other"), home, home / "none")
    assert (way.address, way.port, way.user, way.keys) == ("other", 22, "somebody", ())
    assert way.known_hosts[0] == home / ".ssh/known_hosts"
    assert way.known_as == "other"
    assert way.agent
    assert way.proxy_command == ""
    assert way_to(Target("other", port=23), home, home / "none").known_as == "[other]:23"
    assert way_to(Target("jumped"), home, home / "none").proxy_jump == "gate"


def test_the_system_s_configuration_comes_second(home: Path) -> None:
    system = home / "ssh_config"
    system.write_text("Port 99\nUser nobody\n")
    way = way_to(Target("other"), home, system)
    assert (way.port, way.user) == (99, "somebody")

"""Every file of a night, read by the reader that it is made for."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from nightly_suite import CASES, Suite

from hostfault.nightly.submit import TOKEN, submit
from hostfault.plumbing.cache import default_cache, key_of
from hostfault.plumbing.errors import ConnectionLostError, UsageError

EVERY_SORT = {
    "7.3.4": {"*": "known", "none-load-apf": "ok"},
    "6.12": {"none-load-apf": "skip", "zero-load-apf": "spin", "zero-store-apf": "waits"},
    "6.1": {"none-load-apf": "trouble", "zero-load-apf": "breaks", "zero-store-apf": "vm-exit"},
}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A night with a test of every outcome, and a guest that says awkward things. To be read."""
    suite = Suite(tmp_path_factory.mktemp("night"))
    (suite.root / "summary").write_text('a guest says <b>"]]>&#1;\x1b[31m $x^2$ | # SKIP\x00 ')
    (suite.root / "draw").touch()
    suite.says(EVERY_SORT)
    assert suite.night(kernels="7.3.4,6.12,6.1") == 1
    return suite


# --- results.ktap ---


@pytest.fixture(scope="session")
def kunit() -> Path:
    """The kernel's own kunit.py, out of a source package in the cache."""
    cache = default_cache()
    sources = sorted(cache.root.glob("packages/*/usr/src/linux-source-*.tar.xz"))
    wanted = "tools/testing/kunit/"

    def unpack(place: Path) -> None:
        with tarfile.open(sources[-1]) as pack:
            for member in pack:
                _, _, name = member.name.partition("/")
                if name.startswith(wanted) and name.endswith(".py"):
                    stream = pack.extractfile(member)
                    assert stream is not None
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    (place / name).write_bytes(stream.read())

    key = key_of({"layout": "1", "source": sources[-1].name if sources else "any"})
    kept = sorted(path for path in cache.root.glob("kunit/*") if path.is_dir())
    if not sources and not kept:
        pytest.skip("no linux-source package in the cache: ci/bisect-demo fetches one")
    place = kept[-1] if kept else cache.obtain("kunit", key, unpack)
    return place / wanted / "kunit.py"  # it looks for that path in its own


def parsed(kunit: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(kunit), "parse"], input=text, text=True, capture_output=True
    )


def test_the_kernels_own_parser_reads_the_results(night: Suite, kunit: Path) -> None:
    said = parsed(kunit, night.file("results.ktap"))
    output = said.stdout + said.stderr
    assert "[ERROR]" not in output, output  # what the parser calls a malformed file
    # 7.3.4: one pass, three expected failures. 6.12: a skip, a spin, a time-out, a pass.
    # 6.1: trouble, a broken test, a stop, a pass.
    assert "Ran 12 tests: passed: 7, failed: 4, skipped: 1" in output
    assert said.returncode != 0


def test_the_kernels_own_parser_sees_the_nesting(night: Suite, kunit: Path) -> None:
    said = parsed(kunit, night.file("results.ktap")).stdout
    for name in ("7.3.4", "6.12", "6.1"):
        assert f" {name} (1 subtest)" in said
    assert said.count(f"truncate ({len(CASES)} subtests)") == 3


def test_a_green_night_is_green_to_the_kernels_own_parser(suite: Suite, kunit: Path) -> None:
    suite.says({"7.3.4": EVERY_SORT["7.3.4"]})
    suite.night()
    said = parsed(kunit, suite.file("results.ktap"))
    assert said.returncode == 0
    assert "passed: 4" in said.stdout


def test_every_directive_is_there_and_no_guest_can_forge_one(night: Suite) -> None:
    lines = night.file("results.ktap").splitlines()
    ends = [
        line.partition(" # ")[2].partition(" ")[0]
        for line in map(str.strip, lines)
        if not line.startswith("#") and " # " in line
    ]
    assert sorted(ends) == ["ERROR", "ERROR", "SKIP", "TIMEOUT", "XFAIL", "XFAIL", "XFAIL"]
    assert sum(line.lstrip().startswith("KTAP version 1") for line in lines) == 1 + 3 + 3


# --- junit.xml ---


def test_jenkins_would_read_the_junit_file(night: Suite) -> None:
    xmlschema = pytest.importorskip("xmlschema")
    schema = xmlschema.XMLSchema(str(Path(__file__).with_name("junit-jenkins.xsd")))
    schema.validate(night.file("junit.xml").encode())


def test_the_junit_file_counts_what_it_holds(night: Suite) -> None:
    root = ElementTree.fromstring(night.file("junit.xml"))
    found = {suite.get("name"): suite for suite in root}
    counts = {
        name: tuple(int(suite.get(each, "-1")) for each in ("failures", "errors", "skipped"))
        for name, suite in found.items()
    }
    assert counts == {"7.3.4": (0, 0, 3), "6.12": (1, 1, 1), "6.1": (0, 2, 0)}
    for suite in root:
        for tag, attribute in (
            ("failure", "failures"),
            ("error", "errors"),
            ("skipped", "skipped"),
        ):
            assert len(suite.findall(f"testcase/{tag}")) == int(suite.get(attribute, "-1"))


# --- kcidb.json ---


def test_the_kernels_database_takes_it_and_knows_who_is_to_blame(night: Suite) -> None:
    schema = pytest.importorskip("kcidb_io.schema").V5_3
    data = json.loads(night.file("kcidb.json"))
    schema.validate(data)
    assert data["version"] == {"major": 5, "minor": 3}
    of_build = {build["id"]: build["comment"] for build in data["builds"]}
    statuses: dict[str, set[str]] = {}
    for test in data["tests"]:
        kernel = of_build[test["build_id"]].split("-")[0]
        statuses.setdefault(f"{kernel} {test['path'].rpartition('dax-')[2]}", set()).add(
            test["status"]
        )
    assert statuses["7.3.4 zero-load-apf"] == {"FAIL"}  # known, but the kernel's all the same
    assert statuses["6.12 zero-load-apf"] == {"FAIL"}
    assert statuses["6.12 zero-store-apf"] == {"MISS"}
    assert statuses["6.1 zero-load-apf"] == {"ERROR"}
    assert statuses["6.12 none-load-apf"] == {"SKIP"}
    assert statuses["6.1 zero-store-apf"] == {"PASS"}
    assert len({test["id"] for test in data["tests"]}) == len(data["tests"])


class Database(http.server.BaseHTTPRequestHandler):
    """KernelCI's end of the line."""

    got: list[tuple[str, str, bytes]]
    answer = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).got.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.answer)
        if self.answer == 302:
            self.send_header("Location", "http://localhost:1/elsewhere")
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextlib.contextmanager
def database(answer: int = 200) -> Iterator[tuple[str, type[Database]]]:
    handler = type("Handler", (Database,), {"got": [], "answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/submit", handler
        finally:
            server.shutdown()
            thread.join(10)


def test_a_night_is_submitted_with_the_token_of_the_environment(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN, "a-secret")
    with database() as (url, server):
        assert suite.night("--submit", url) == 0
    [(path, authorization, body)] = server.got
    assert (path, authorization) == ("/submit", "Bearer a-secret")
    assert body.decode() == suite.file("kcidb.json")
    said = capsys.readouterr()
    assert "submitted to 127.0.0.1: 200" in said.out
    assert "a-secret" not in said.out + said.err
    for path in suite.store.folder(suite.last.name).rglob("*"):
        assert path.is_dir() or b"a-secret" not in path.read_bytes()


def test_a_refused_submission_is_told(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "a-secret")
    with database(401) as (url, _):
        assert suite.night("--submit", url) == 3
    assert suite.last.finished


def test_a_token_goes_to_nobody_else() -> None:
    with database(302) as (url, server):
        with pytest.raises(ConnectionLostError, match="302"):
            submit(url, "{}", {TOKEN: "a-secret"})
        assert len(server.got) == 1
    with pytest.raises(UsageError, match="needs https"):
        submit("http://example.org/submit", "{}", {TOKEN: "a-secret"})
    with pytest.raises(UsageError, match="is not set"):
        submit("https://example.org/submit", "{}", {})


# --- summary.md ---


def test_the_summary_goes_to_githubs_page(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    page = suite.root / "step-summary"
    page.write_text("what was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    suite.night()
    assert page.read_text().startswith("what was there\n## hostfault")


def test_no_guest_writes_markdown_or_lines_of_its_own(night: Suite) -> None:
    summary = night.file("summary.md")
    assert "<b>" not in summary
    assert "\x1b" not in summary
    rows = [line for line in summary.splitlines() if line.startswith("| 6.12")]
    assert len(rows) == 1
    assert r"\<b\>" in rows[0]


def test_a_summary_fits_on_a_screen_whatever_happened(suite: Suite) -> None:
    suite.says({"*": {"*": "spin"}})
    suite.night(kernels=",".join(f"k{number}=6.{number}" for number in range(4)))
    summary = suite.file("summary.md").splitlines()
    assert len(summary) < 40
    assert "4 more" in "\n".join(summary)


# --- report.html ---


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        for folder in os.get_exec_path():
            if (Path(folder) / name).exists():
                return name
    pytest.skip("no chromium here: apt-get install chromium")


def dom(chromium: str, report: Path, place: Path, anchor: str = "") -> str:
    """The page as the browser has it after loading; what it complains of is in it, too."""
    place.mkdir()
    said = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--user-data-dir={place}", "--window-size=390,900"),
            f"file://{report}{anchor}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    console = [line for line in said.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return said.stdout


PROBE = """<script>
addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth > innerWidth;
  const shown = [...document.querySelectorAll(".detail")].filter(
    (each) => getComputedStyle(each).display !== "none").map((each) => each.id);
  const boxes = [...document.querySelectorAll(".grid .box")].map((each) => each.innerText.trim());
  document.body.dataset.said = JSON.stringify({
    wide, shown, boxes, ids: [...document.querySelectorAll("[id]")].map((each) => each.id),
    scripts: document.scripts.length, width: innerWidth,
    foreign: [...document.querySelectorAll("[src], link, iframe, object, embed")].length});
});
</script></body>"""


def asked(chromium: str, report: Path, place: Path, anchor: str = "") -> dict[str, object]:
    """What a script of ours finds in a copy of the page that allows it one."""
    place.mkdir()
    copy = place / "report.html"
    text = report.read_text()
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert policy in text
    copy.write_text(
        text.replace(policy, f"{policy}; script-src 'unsafe-inline'").replace("</body>", PROBE)
    )
    page = dom(chromium, copy, place / "profile", anchor)
    found = ElementTree.fromstring(f"<x {page[page.index('data-said=') :].partition('>')[0]}/>")
    data = json.loads(found.get("data-said", ""))
    assert isinstance(data, dict)
    return data


def report_of(suite: Suite) -> Path:
    return suite.store.folder(suite.last.name) / "report.html"


def test_a_browser_shows_the_grid_with_a_word_in_every_cell(
    night: Suite, chromium: str, tmp_path: Path
) -> None:
    found = asked(chromium, report_of(night), tmp_path / "browser")
    boxes = found["boxes"]
    assert isinstance(boxes, list)
    words = [" ".join(box.split()[1:]) for box in boxes]
    expected = "ok spin spin spin skipped spin-worse timeout task-error harness broken vm-exit"
    assert sorted(words) == sorted(
        word.replace("-worse", " worse") for word in [*expected.split(), "task-error"]
    )
    assert found["foreign"] == 0
    assert found["scripts"] == 1  # the one of this test
    ids = found["ids"]
    assert isinstance(ids, list)
    assert len(ids) == len(set(ids))


def test_a_click_opens_the_details_of_that_cell_and_of_no_other(
    night: Suite, chromium: str, tmp_path: Path
) -> None:
    assert asked(chromium, report_of(night), tmp_path / "a")["shown"] == []
    assert asked(chromium, report_of(night), tmp_path / "b", "#c1")["shown"] == ["c1"]


def test_the_page_is_not_wider_than_a_phone(night: Suite, chromium: str, tmp_path: Path) -> None:
    for number, anchor in enumerate(("", "#c1", "#c5")):
        found = asked(chromium, report_of(night), tmp_path / str(number), anchor)
        assert not found["wide"], found["width"]


def test_what_a_guest_says_is_shown_and_never_obeyed(
    suite: Suite, chromium: str, tmp_path: Path
) -> None:
    owned = "document.title='owned'"
    attack = f'</pre><script>{owned}</script><img src=x onerror="{owned}">'
    (suite.root / "summary").write_text(attack)
    suite.night()
    page = dom(chromium, report_of(suite), tmp_path / "profile")
    assert "<title>hostfault" in page
    assert "<script" not in page
    assert "&lt;script&gt;document.title" in page


def test_the_page_has_the_evidence_the_command_and_the_plot(night: Suite) -> None:
    page = report_of(night).read_text()
    assert "QMP query-status: running" in page
    assert "--host emulated --host-kernel 7.3.4" in page
    assert "RIP=00000000004016b5" in page
    assert page.count("seconds since the touch") == 8  # all but the skip and those without proof
    assert "STOP" in page
    assert "internal-error" in page
    assert not re.findall(r"(?:src|href|action|url\()=?[\"']?(?:https?:)?//", page)

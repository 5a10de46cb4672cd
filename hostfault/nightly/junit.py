"""``junit.xml``: the whole night in one file, as Jenkins, GitLab and GitHub's actions read it.

A test suite is a kernel. An expected failure is skipped, as pytest has it. A run that did not
count in the end (a flake) is told in the case's output.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from xml.etree import ElementTree

from hostfault.nightly import summary
from hostfault.nightly.digest import Digest
from hostfault.nightly.results import Result, Status

_TAGS = {
    Status.FAILED: "failure",
    Status.BROKEN: "error",
    Status.HARNESS: "error",
    Status.TIMEOUT: "error",
    Status.KNOWN: "skipped",
    Status.SKIPPED: "skipped",
}
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(digest: Digest) -> str:
    """The whole file."""
    root = ElementTree.Element("testsuites", name="hostfault nightly")
    for kernel in digest.kernels:
        cells = [result for result in digest.cells.values() if result.kernel == kernel]
        _suite(root, digest, kernel, cells)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, digest: Digest, kernel: str, cells: Sequence[Result]) -> None:
    tags = [_TAGS.get(result.outcome, "") for result in cells]
    began = min((each.began for each in cells), default=digest.night.began)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=_clean(kernel),
        tests=str(len(cells)),
        failures=str(tags.count("failure")),
        errors=str(tags.count("error")),
        skipped=str(tags.count("skipped")),
        time=f"{sum(each.seconds for each in cells):.3f}",
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began)),
        hostname=_clean(digest.night.runner),
    )
    for result in cells:
        _case(suite, digest, result)


def _case(suite: ElementTree.Element, digest: Digest, result: Result) -> None:
    module, _, name = result.case.rpartition("::")
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_clean(f"{result.kernel}.{module.removesuffix('.py').replace('/', '.')}"),
        name=_clean(name),
        time=f"{result.seconds:.3f}",
    )
    tag = _TAGS.get(result.outcome)
    said = ": ".join(filter(None, (result.verdict or result.reason, result.summary)))
    if tag:
        mark = ElementTree.SubElement(case, tag, message=_clean(said.partition("\n")[0]))
        if tag != "skipped":
            mark.set("type", result.reason or result.verdict or result.outcome.value)
            evidence = result.record.get("evidence") or []
            mark.text = _clean("\n".join([said, *map(str, evidence)]))
    lines = [said] if said and not tag else []
    other = digest.flakes.get(result.key, ())
    lines += [f"run {each.attempt}: {each.word}: {each.summary}" for each in other]
    lines.append(f"again: {summary.replay(digest, result)}")
    ElementTree.SubElement(case, "system-out").text = _clean("\n".join(lines))


def _clean(said: str) -> str:
    """Without what no XML may have, however it is escaped."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", said)

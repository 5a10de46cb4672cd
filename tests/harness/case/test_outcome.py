"""What the task reported, once the host sees no more faults; and a guest that lies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from case_stand_ins import (
    ADDRESS,
    BUS_ADRERR,
    GFN,
    RIP,
    SI_USER,
    SIGBUS,
    SIGTERM,
    facts_of,
    kind_of,
    observed,
    quiet,
    recorded,
    rising,
    sample,
    spinning,
)

from hostfault.case.model import (
    Event,
    Observation,
    Outcome,
    Sample,
    Terms,
    VerdictKind,
)
from hostfault.case.verdict import final_verdict, judge


def test_a_guest_cannot_report_its_way_out_of_a_spin() -> None:
    lying = spinning(outcome=Outcome("value", 0x88), expected=0x88)
    assert judge(lying) is None
    verdict = final_verdict(lying)
    assert verdict.kind is VerdictKind.SPIN
    assert verdict.summary != final_verdict(spinning()).summary, "it mentions the outcome"
    assert any("0x88" in line for line in verdict.evidence)


def test_an_outcome_waits_until_the_frame_is_quiet() -> None:
    ended = Outcome("value", 0x88)
    first = observed(sample(-0.1), sample(0.1, (GFN, RIP, 2)), outcome=ended, expected=0x88)
    assert judge(first) is None
    then = dataclasses.replace(first, samples=(*first.samples, sample(0.2, (GFN, RIP, 2))))
    assert kind_of(then) is VerdictKind.OK


def test_an_outcome_of_an_unknown_kind_proves_nothing() -> None:
    assert judge(quiet(Outcome("all-is-well", 1), expected=1)) is None


def test_a_load_of_the_right_byte_is_ok() -> None:
    assert kind_of(quiet(Outcome("value", 0x88), expected=0x88)) is VerdictKind.OK


def test_a_page_that_was_huge_is_in_the_evidence_of_every_verdict() -> None:
    for plain in (quiet(Outcome("value", 0x88), expected=0x88), spinning()):
        before, after = judge(plain), judge(dataclasses.replace(plain, huge_mapped=6 << 20))
        assert before is not None
        assert after is not None
        assert set(facts_of(" ".join(set(after.evidence) - set(before.evidence)))) == {"6144"}


def test_a_page_that_is_left_out_is_an_error_where_there_is_none() -> None:
    assert kind_of(quiet(Outcome("hole"), access="coredump")) is VerdictKind.TASK_ERROR
    assert kind_of(quiet(Outcome("hole"), access="coredump", expected=0x88)) is None


def test_a_load_that_succeeds_beyond_the_end_of_the_file_is_stale() -> None:
    verdict = judge(quiet(Outcome("value", 0x88), expected=None))
    assert verdict is not None
    assert verdict.kind is VerdictKind.STALE
    assert facts_of(verdict.summary) == ["0x88"]


def test_a_wrong_byte_of_an_intact_file_is_stale_too() -> None:
    wrong = quiet(Outcome("value", 0), expected=0x88, fault="none")
    assert kind_of(wrong) is VerdictKind.STALE


def test_a_store_is_ok_when_the_host_file_holds_the_byte() -> None:
    stored = quiet(Outcome("value", 0x5A), access="store", stored_byte=0x5A)
    assert kind_of(stored) is VerdictKind.OK


def test_a_store_that_reached_no_file_is_stale() -> None:
    lost = quiet(Outcome("value", 0x5A), access="store", stored_byte=None)
    assert kind_of(lost) is VerdictKind.STALE


def test_a_store_into_an_intact_file_needs_a_look_at_the_file() -> None:
    unseen = quiet(Outcome("value", 0x5A), access="store", fault="none", expected=0x5A)
    assert judge(unseen) is None


def test_a_signal_for_the_touched_page_is_a_task_error() -> None:
    verdict = judge(quiet(Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP)))
    assert verdict is not None
    assert verdict.kind is VerdictKind.TASK_ERROR
    assert "SIGBUS" in verdict.summary


def test_a_signal_from_the_touching_instruction_needs_no_address() -> None:
    assert kind_of(quiet(Outcome("signal", 11, 0x80, 0, RIP))) is VerdictKind.TASK_ERROR


@pytest.mark.parametrize(("rip", "its"), [(ADDRESS + 16, True), (ADDRESS + 4096, False)])
def test_a_signal_from_an_instruction_in_the_page_needs_no_address(rip: int, its: bool) -> None:
    seen = quiet(Outcome("signal", SIGBUS, 0x80, 0, rip))
    fetched = dataclasses.replace(seen, probe=dataclasses.replace(seen.probe, rip=0))
    assert kind_of(fetched) is (VerdictKind.TASK_ERROR if its else None)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP),
        Outcome("errno", 5),
        Outcome("value", 0x88),
    ],
)
def test_row_8_the_outcome_of_an_access_that_the_host_never_saw_is_not_believed(
    outcome: Outcome,
) -> None:
    calm = sample(-0.1), sample(0.1), sample(0.2)
    assert judge(observed(*calm, outcome=outcome)) is None
    elsewhere = [sample(-0.1), *(sample(at, (GFN, RIP + 4, 1)) for at in (0.1, 0.2))]
    assert judge(observed(*elsewhere, outcome=outcome)) is None, "the fault is not the access's"
    by_the_guest = observed(*calm, outcome=outcome, fault="guest")
    assert kind_of(by_the_guest) in (VerdictKind.TASK_ERROR, VerdictKind.STALE)


def test_a_signal_from_elsewhere_is_not_the_answer_to_the_access() -> None:
    assert judge(quiet(Outcome("signal", 11, 1, 0x10, RIP + 0x100))) is None


def test_a_signal_that_somebody_sent_is_not_the_answer_to_the_access() -> None:
    assert judge(quiet(Outcome("signal", SIGTERM, SI_USER, ADDRESS, RIP))) is None


def test_an_errno_is_a_task_error() -> None:
    verdict = judge(quiet(Outcome("errno", 5)))
    assert verdict is not None
    assert verdict.summary == "errno 5 (EIO)"


def burst(outcome: Outcome, *samples: Sample) -> Observation:
    """Many retries, then an end; the rows before it say whether the page was there."""
    end = dataclasses.replace(samples[-1], at=samples[-1].at + 0.1)
    return observed(sample(-0.1), *samples, end, outcome=outcome, expected=0x88)


def test_row_5_a_burst_of_retries_before_an_access_that_works_is_no_spin() -> None:
    works = Outcome("value", 0x88)
    short = [sample(0.1, (GFN, RIP, 300)), sample(0.2, (GFN, RIP, 900))]
    assert kind_of(burst(works, *short)) is VerdictKind.OK
    backed = rising(9000, backed=True)[1:]
    assert kind_of(burst(works, *backed)) is VerdictKind.OK
    assert kind_of(burst(works, *rising(9000)[1:])) is VerdictKind.SPIN, "the page was gone"


def test_row_5_an_error_is_due_at_the_first_failed_attempt() -> None:
    told = Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP)
    assert kind_of(burst(told, sample(0.1, (GFN, RIP, 900)))) is VerdictKind.SPIN


def test_row_5_five_hundred_real_retries_are_no_spin() -> None:
    seen = recorded("ok.mutant-retries-500-times-7.3.4.json")
    assert seen.samples[-1].faults[0].count >= 500
    assert final_verdict(seen).kind is VerdictKind.OK


def by_device(outcome: Outcome, **changes: Any) -> Observation:
    """What QEMU did for a disk of the guest's: KVM sees no fault of it."""
    terms = Terms(
        takes_page=True, control=False, writes=True, by_kernel=True, expected=None, by_device=True
    )
    samples = (sample(-0.1), sample(0.1), sample(0.2))
    return observed(*samples, outcome=outcome, terms=terms, access="dma", **changes)


def test_an_error_of_a_device_counts_if_qemu_tells_of_it() -> None:
    told = Event("BLOCK_IO_ERROR", 0.1, {"reason": "Bad address"})
    assert kind_of(by_device(Outcome("errno", 5), events=(told,))) is VerdictKind.TASK_ERROR
    assert kind_of(by_device(Outcome("errno", 5))) is None
    before = dataclasses.replace(told, at=-0.2)
    assert kind_of(by_device(Outcome("errno", 5), events=(before,))) is None


def test_an_error_of_the_guests_own_needs_no_word_of_qemus() -> None:
    seen = by_device(Outcome("errno", 14))
    kept = dataclasses.replace(seen.terms, takes_page=False)
    assert kind_of(dataclasses.replace(seen, terms=kept)) is VerdictKind.TASK_ERROR
    assert kind_of(seen) is None


def test_what_a_device_stored_counts_if_it_is_there() -> None:
    assert kind_of(by_device(Outcome("value", 0x5A), stored_byte=0x5A)) is VerdictKind.OK
    assert kind_of(by_device(Outcome("value", 0x5A), stored_byte=0x11)) is None


def test_what_others_met_while_the_host_was_at_it_is_no_failure_of_the_access() -> None:
    """Of a storm a sample is taken between the fault and the word."""
    met = (GFN, RIP, 300)
    samples = (sample(-0.2), sample(-0.1, met), sample(0.1, met), sample(0.2, met))
    told = Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP)
    assert kind_of(observed(*samples, outcome=told)) is VerdictKind.TASK_ERROR
    found = Outcome("value", 0)
    assert kind_of(observed(*samples, outcome=found, expected=0)) is VerdictKind.OK
    nobody = (sample(-0.2), sample(-0.1), sample(0.1), sample(0.2))
    assert kind_of(observed(*nobody, outcome=found, expected=0)) is None

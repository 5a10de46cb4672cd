"""Which guest frames fail: at random, or such that they collide in the table's hash."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

GOLDEN_RATIO_32 = 0x61C88647  # the multiplier of hash_32() (Linux, include/linux/hash.h)
LARGEST_TABLE = 64  # slots


def slot(gfn: int, slots: int) -> int:
    """The slot of a frame in a hash table of ``slots``; for a power of two ``hash_32(gfn, n)``.

    Source: our patch error-table (arch/x86/kvm/apf_error.c, hash_slot).
    """
    hashed = ((gfn & 0xFFFFFFFF) * GOLDEN_RATIO_32) & 0xFFFFFFFF
    return hashed * slots >> 32


def alone(gfns: Sequence[int], slots: int) -> int:
    """How many of the frames share their slot with none of the others."""
    return list(Counter(slot(gfn, slots) for gfn in gfns).values()).count(1)


def none_alone(number: int, slots: int) -> float:
    """The share of random draws of ``number`` frames in which none is alone in its slot.

    Exact, for frames that fall into every slot with the same probability: by inclusion and
    exclusion over the slots that hold exactly one frame.
    """
    ways = sum(
        (-1) ** single
        * math.comb(slots, single)
        * math.perm(number, single)
        * (slots - single) ** (number - single)
        for single in range(min(number, slots) + 1)
    )
    return float(ways / slots**number)


def choose(kind: str, gfns: Sequence[int], number: int, rng: random.Random) -> list[int]:
    """``number`` of the frames at hand.

    ``random``: any. ``collide``: all in one slot of a table of 64, and so of any smaller one
    with a power of two of slots.
    """
    if kind == "random":
        return rng.sample(list(gfns), number)
    by_slot = defaultdict(list)
    for gfn in gfns:
        by_slot[slot(gfn, LARGEST_TABLE)].append(gfn)
    crowded = [slot for slot, members in sorted(by_slot.items()) if len(members) >= number]
    return rng.sample(by_slot[rng.choice(crowded)], number)

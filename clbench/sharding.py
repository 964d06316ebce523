"""Parts of an experiment for machines that know nothing of each other: the i-th of n, the same wherever it is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clbench.errors import SpecError
from clbench.plan import Planned


def part(planned: Sequence[Planned], shard: str) -> list[Planned]:
    """Return the i-th of n parts of a plan, in its order; `shard` is `i/n`, counted from 1.

    Trials are dealt out setting by setting and in it method by method, so that every part has its share of each.

    Raises:
        SpecError: `shard` is no such thing.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise SpecError(f"shard {shard!r}: write i/n with i from 1 to n, as in 2/8")
    index, parts = int(found[1]) - 1, int(found[2])
    if parts > len(planned):
        raise SpecError(f"shard {shard!r}: there are only {len(planned)} trials to share out; take fewer parts")
    kinds = list(dict.fromkeys((p.trial.setting, p.label) for p in planned))
    dealt = sorted(range(len(planned)), key=lambda i: kinds.index((planned[i].trial.setting, planned[i].label)))
    return [planned[i] for i in sorted(dealt[index::parts])]

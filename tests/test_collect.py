"""The garbage collector runs seldom while graphs are worked on, and as before afterwards."""

from __future__ import annotations

import gc

from onnxslim_core._collect import few_collections, long_lived


def test_thresholds_come_back() -> None:
    before = gc.get_threshold()
    with few_collections():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


def test_what_is_made_to_last_is_not_looked_through() -> None:
    with few_collections():
        with long_lived():
            assert not gc.isenabled()
            kept = [[index] for index in range(10_000)]
        assert gc.isenabled()
        assert gc.get_count()[0] < len(kept)


def test_what_somebody_set_aside_stays_aside() -> None:
    gc.freeze()
    try:
        with long_lived():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()

"""What is done already: found with the same settings alone, and gone with others."""

from __future__ import annotations

import math

from policy_distill.studies.completed import read_completed, write_completed

SETTINGS = {"seed": 1, "loss": {"temperature": 2.0}, "sizes": (8, 8)}


def test_a_record_is_found_with_the_same_settings_in_any_order(tmp_path):
    path = tmp_path / "done.json"
    assert read_completed(path, SETTINGS) is None
    write_completed(path, SETTINGS, retention=math.nan, kept=(True, False))
    record = read_completed(path, dict(reversed(SETTINGS.items())))
    assert record is not None
    assert (record["retention"], record["kept"]) == (None, [True, False])


def test_a_record_of_other_settings_is_removed(tmp_path):
    path = tmp_path / "done.json"
    write_completed(path, SETTINGS, retention=1.0)
    assert read_completed(path, {**SETTINGS, "seed": 2}) is None
    assert not path.exists()

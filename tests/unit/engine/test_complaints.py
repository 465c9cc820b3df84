"""Failures of a storage in the log."""

import pytest

from engine.l2.complaints import Complaints
from engine.object_key import ObjectKey

KEY = ObjectKey(b"\xab" * 32, "m", 0, 0, "")


def test_what_is_not_shown_is_counted_and_nothing_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints = Complaints("L2 adapter 0-fs")
    for _ in range(3):
        complaints.add("read", KEY, OSError("torn"))
    monkeypatch.setattr(Complaints, "INTERVAL_S", 0.0)
    complaints.add("read", KEY, OSError("torn"))

    assert caplog.messages == [
        "L2 adapter 0-fs: could not read object abababababababab…: torn",
        "L2 adapter 0-fs: could not read object abababababababab…: torn (2 more not shown)",
    ]

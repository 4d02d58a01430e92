"""Whatever a tracker does, the training goes on, and how it ended is told. Free of MLflow and TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xfeat.head.tracking.backends import Tracking, tracked


class Recording:
    """A tracker that keeps what it is told, and fails when told to."""

    title = "a list"

    def __init__(self, fails_at: str = "") -> None:
        self.told: list[str] = []
        self.fails_at = fails_at

    def __getattr__(self, name: str) -> Callable[..., None]:
        def method(*args: Any, **kwargs: Any) -> None:
            self.told.append(f"{name} killed" if kwargs.get("killed") else name)
            if name == self.fails_at:
                raise OSError("gone")

        return method


@pytest.mark.parametrize("fails_at", ["begin", "record", "child", "end"])
def test_a_tracker_that_fails_is_dropped_and_the_others_continue(
    fails_at: str, caplog: pytest.LogCaptureFixture
) -> None:
    weak, strong = Recording(fails_at), Recording()
    with tracked([weak, strong], "a", {}) as tracking:
        tracking.record(1, {"x": 1})
        tracking.child("b", {}, {})
        tracking.end({})
    assert strong.told == ["begin", "record", "child", "end"]
    assert weak.told == strong.told[: strong.told.index(fails_at) + 1]
    assert "tracking in a list failed and stops here; the training continues: gone" in caplog.text


@pytest.mark.parametrize(("error", "last"), [(ValueError, "fail"), (KeyboardInterrupt, "fail killed")])
def test_a_training_that_ends_early_is_closed_as_failed_or_stopped(error: type[BaseException], last: str) -> None:
    tracker = Recording()

    def training() -> None:
        with tracked([tracker], "a", {}) as tracking:
            tracking.record(1, {})
            raise error

    with pytest.raises(error):
        training()
    assert tracker.told == ["begin", "record", last]


def test_a_training_that_ends_before_its_first_step_is_not_recorded() -> None:
    tracker = Recording()
    with pytest.raises(ValueError, match="early"), tracked([tracker], "a", {}):
        raise ValueError("early")
    assert tracker.told == []


def test_tracking_works_without_trackers() -> None:
    tracking = Tracking([], "a", {})
    tracking.record(1, {})
    tracking.end({})

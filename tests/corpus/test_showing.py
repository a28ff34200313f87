"""Contract: what a person sees of a job."""

from __future__ import annotations

import time

import pytest

from bothways.corpus import showing
from bothways.corpus.showing import Bar, Lines


def test_lines_say_rows_rate_and_time_left_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with showing.showing(100_000, wanted=True) as show:
        assert isinstance(show, Lines)
        show.add(500)
        assert capsys.readouterr().err == ""
        now = 120.0
        show.add(1500)
        assert capsys.readouterr().err == "encode: 2,000 of 100,000 texts  100 texts/s  16:20 left\n"
        now = 130.0
        show.add(1)
        show.say("worker 0 is gone")
        assert capsys.readouterr().err == "encode: worker 0 is gone\n"
    with showing.showing(3, wanted=False) as show:
        show.add(3)
        show.say("nothing")
    assert capsys.readouterr().err == ""


def test_a_bar_counts_up_and_down() -> None:
    with Bar(10) as bar:
        bar.add(7)
        bar.add(-3)
        (task,) = bar.bar.tasks
        assert (task.completed, task.total) == (4, 10)
        assert task.fields["rate"] != "-"

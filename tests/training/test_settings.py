"""Settings: what is refused and how it is said; a learning rate that ends where training ends."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from dataclasses import fields

import pytest

from bothways.errors import ConfigError
from bothways.training.settings import MNTP, SimCSE, Supervised

WRONG = [
    (MNTP, {"steps": 0}, "MNTP(steps=0): expected a whole number, 1 <= steps."),
    (MNTP, {"mask_rate": 1.0}, "MNTP(mask_rate=1.0): expected 0 < mask_rate < 1."),
    (MNTP, {"mask_rate_end": 0.0}, "MNTP(mask_rate_end=0.0): expected 0 < mask_rate_end < 1."),
    (MNTP, {"held_out_rates": (0.2, 1.5)}, "MNTP(held_out_rates=1.5): expected 0 < held_out_rates < 1."),
    (MNTP, {"merge_back": 1.0}, "MNTP(merge_back=1.0): expected 0 <= merge_back < 1."),
    (MNTP, {"block_size": 1}, "MNTP(block_size=1): expected a whole number, 2 <= block_size."),
    (SimCSE, {"temperature": 0.0}, "SimCSE(temperature=0.0): expected 0 < temperature."),
    (SimCSE, {"dropout": 1.0}, "SimCSE(dropout=1.0): expected 0 <= dropout < 1."),
    (Supervised, {"warm_up": 1.5}, "Supervised(warm_up=1.5): expected 0 <= warm_up <= 1."),
    (MNTP, {"tokens_per_batch": 0}, "MNTP(tokens_per_batch=0): expected a whole number, 1 <= tokens_per_batch."),
    (MNTP, {"ema_decay": 1.0}, "MNTP(ema_decay=1.0): expected 0 <= ema_decay < 1."),
    (MNTP, {"decay": 1.2}, "MNTP(decay=1.2): expected 0 <= decay <= 1."),
    (
        MNTP,
        {"schedule": "wsd", "warm_up": 0.5, "decay": 0.6},
        'MNTP(schedule="wsd", warm_up=0.5, decay=0.6): expected warm_up + decay <= 1.',
    ),
    (Supervised, {"negatives": -1}, "Supervised(negatives=-1): expected a whole number, 0 <= negatives."),
    (Supervised, {"size_exponent": 2}, "Supervised(size_exponent=2): expected 0 <= size_exponent <= 1."),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG, ids=[message.split(":")[0] for *_, message in WRONG])
def test_a_wrong_value_is_named_with_what_is_allowed(kind: type, values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert str(caught.value) == message


def test_wrong_types_are_named_without_torch() -> None:
    """In a process of its own, where no checked signature speaks first; settings alone load neither torch nor peft."""
    script = """
import sys
from bothways import MNTP, Supervised
try:
    Supervised(batching="one")
except ValueError as error:
    print(error)
for values in ({"schedule": "step"}, {"steps": 2.5}, {"learning_rate": "high"}, {"seed": True}):
    try:
        MNTP(**values)
    except ValueError as error:
        print(error)
assert not {"torch", "peft", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        'Supervised(batching=\'one\'): expected one of "homogeneous", "mixed".',
        'MNTP(schedule=\'step\'): expected one of "cosine", "linear", "constant", "wsd".',
        "MNTP(steps=2.5): expected a whole number, 1 <= steps.",
        "MNTP(learning_rate='high'): expected 0 < learning_rate.",
        "MNTP(seed=True): expected a whole number, 0 <= seed.",
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_reaches_zero_right_after_the_last_step(schedule: str) -> None:
    settings = MNTP(steps=17, warm_up=0.3, schedule=schedule, learning_rate=3e-3)
    rates = [settings.rate(step) for step in range(18)]
    assert rates[0] == pytest.approx(3e-3 / 5)
    assert max(rates) == rates[4] == 3e-3
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[16] < 3e-3 / 10
    assert rates[17] == pytest.approx(0, abs=1e-12)


def test_wsd_is_stable_until_its_share_is_left() -> None:
    settings = MNTP(steps=20, warm_up=0.1, schedule="wsd", decay=0.25, learning_rate=2.0)
    rates = [settings.rate(step) for step in range(21)]
    assert rates[:2] == [1.0, 2.0]
    assert rates[1:16] == [2.0] * 15
    assert rates[15:] == pytest.approx([2 * (1 - math.sqrt(done / 5)) for done in range(6)])
    assert rates[20] == 0


def test_a_constant_rate_only_warms_up() -> None:
    settings = MNTP(steps=10, warm_up=0.2, schedule="constant", learning_rate=1.0)
    assert [settings.rate(step) for step in range(10)] == [0.5, *[1.0] * 9]


def test_the_mask_rate_goes_from_its_first_value_to_its_last() -> None:
    settings = MNTP(steps=5, mask_rate=0.1, mask_schedule="linear", mask_rate_end=0.3)
    assert [settings.mask_rate_of(step) for step in range(5)] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert MNTP(mask_rate=0.3).mask_rate_of(7) == 0.3
    assert MNTP(mask_schedule="uniform").mask_rate_of(7) is None


def test_every_field_says_what_it_is() -> None:
    for kind in (MNTP, SimCSE, Supervised):
        for parent in [parent for parent in kind.__mro__ if parent is not object]:
            source = inspect.getsource(parent)
            for field in fields(kind):
                if f"    {field.name}: " in source:
                    after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
                    assert after.strip().startswith('"""'), f"{parent.__name__}.{field.name}"

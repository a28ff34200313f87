"""Property: ten times the texts do not take ten times the memory, neither to tokenise them nor to walk through them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
from bothways.data import Texts
from bothways.training.batches import Order, split_held_out
from bothways.training.rows import shares_of
from bothways.training.token_cache import stored
from bothways.training.tokens import Blocks, Tokens

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
tokens = Tokens(stored(Texts([sys.argv[1]]), lambda texts: [list(text.encode()) for text in texts], "bytes"))
_, left_out = split_held_out(tokens.hashes, 200, 0)
training = tokens.without(left_out)
for rows in (training, Blocks(training, 128, None)):
    order = Order(shares_of(rows), 32, 0)
    for step in range(0, 20 * order.per_epoch, max(1, order.per_epoch // 100)):
        assert all(rows[item] for item in order.batch(step).items)
print(peak() - before)
"""
MORE = 1_800_000
BYTES_PER_TEXT = 48
"""Offset, hash, and the permutations of an epoch, with what making them takes. A list of ids takes some 700."""


@pytest.mark.slow
def test_memory_hardly_grows_with_the_texts(tmp_path: Path) -> None:
    grown = []
    for count in (200_000, 200_000 + MORE):
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"text {number} of some words\n" for number in range(count)))
        environment = {**os.environ, "BOTHWAYS_CACHE": str(tmp_path / "cache")}
        call = [sys.executable, "-c", SCRIPT, str(path)]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
        grown.append(int(done.stdout))
    assert (grown[1] - grown[0]) * 2**20 < MORE * BYTES_PER_TEXT

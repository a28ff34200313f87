"""What an encode run is made of: real text, cut to lengths in tokens, and a random decoder that reads it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

from benchmarks.peers.condition import Condition
from benchmarks.peers.wire import Job

TEXTS = "texts.jsonl"
LOG_NORMAL = (60, 0.9)
"""Median number of tokens, and the standard deviation of its logarithm."""
SHORTEST = 8
UNIFORM = 128
SHORT = (8, 16)
SAMPLE = 16
"""Texts whose vectors are compared over all variants before anything is timed; the first pass has no others."""
BATCH = 32
"""Texts that the peers compute at once: their default."""


@dataclass(frozen=True)
class EncodeJob(Job):
    """Encode all texts; what a step takes is one pass over them."""

    blank: bool = False
    """Whether the model computes nothing, so that all that is measured is what is done besides."""


@dataclass(frozen=True)
class Passages(Condition):
    """`batch` texts of the Python documentation's topics; `tokens` is the most that is read of one."""

    lengths_are: str = "log-normal"
    number: str = "float32"
    """float32, bfloat16, or auto: what each variant takes unless it is told."""
    blank: bool = False

    work: ClassVar[str] = "encode"

    @property
    def dtype(self) -> str:
        """What the floor is computed in, and how near vectors are to be: "auto" is bfloat16 where that is faster."""
        if self.number != "auto":
            return self.number
        import torch

        from bothways import hardware

        return str(hardware.choose_dtype("auto", torch.device(self.device)).value).removeprefix("torch.")

    def job(self, folder: Path, attention: str) -> EncodeJob:
        """What a worker is told."""
        common = {**self.common(folder, attention), "dtype": self.number}
        return EncodeJob(**common, blank=self.blank)

    def lengths(self) -> list[int]:
        """Tokens of every text: the quantiles of the distribution, in an order that means nothing."""
        places = [(number + 0.5) / self.batch for number in range(self.batch)]
        if self.lengths_are == "uniform":
            found = [UNIFORM] * self.batch
        elif self.lengths_are == "short":
            found = [SHORT[0] + int(place * (SHORT[1] - SHORT[0] + 1)) for place in places]
        else:
            logarithm = NormalDist(math.log(LOG_NORMAL[0]), LOG_NORMAL[1])
            found = [min(self.tokens, max(SHORTEST, round(math.exp(logarithm.inv_cdf(place))))) for place in places]
        random.Random(0).shuffle(found)
        return found

    def make(self, folder: Path) -> None:
        """A random decoder with the embedded one's tokenizer, but no token in front; and the texts."""
        super().make(folder)
        from bothways.loading import EMBEDDED

        tokenizer = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
        # llm2vec pools no token in front of a text, sentence-transformers does: without one they do the same work.
        tokenizer["post_processor"] = None
        # As tokenizers 0.19 spells them, which llm2vec needs.
        tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")

    def write_rows(self, folder: Path) -> None:
        """Consecutive pieces of the text, so that none is there twice."""
        from pydoc_data.topics import topics

        from tokenizers import Tokenizer

        from bothways.loading import EMBEDDED

        words = " ".join(" ".join(topics.values()).split())
        tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
        spans = tokenizer.encode(words, add_special_tokens=False).offsets
        texts, start = [], 0
        for length in self.lengths():
            if start + length > len(spans):
                # From the beginning again, but not with the same pieces.
                start = len(texts) % 7 + 1
            texts.append(words[spans[start][0] : spans[start + length - 1][1]].strip())
            start += length
        (folder / TEXTS).write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")

    def padding(self) -> dict[str, float]:
        """Tokens of one pass, and how many times as many in batches of 32 sorted by length."""
        lengths = sorted(self.lengths())
        padded = sum(
            len(lengths[start : start + BATCH]) * lengths[start : start + BATCH][-1]
            for start in range(0, len(lengths), BATCH)
        )
        return {"tokens": sum(lengths), "padding": padded / sum(lengths)}

    def unlike(self, facts: Mapping[str, Any], ours: Mapping[str, Any], allowed: float) -> str:
        """Which vector is another one than ours, if one is."""
        if self.blank:
            return ""
        cosines = [
            sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
            for one, other in zip(facts["sample"], ours["sample"], strict=True)
        ]
        lowest = min(cosines)
        return "" if 1 - lowest <= allowed else f"gives a vector with cosine {lowest:.6f} to that of bothways"


def passages(given: Job) -> list[str]:
    """The texts."""
    lines = (Path(given.folder) / TEXTS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def blanked(model: Any) -> None:
    """Let a trunk give zeros of the right shape at once."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPast

    def forward(input_ids: Any = None, **_: Any) -> Any:
        states = torch.zeros(*input_ids.shape, model.config.hidden_size, dtype=model.dtype)
        return BaseModelOutputWithPast(last_hidden_state=states)

    model.forward = forward


def serve(gate: Any, encode: Any, texts: list[str], **facts: Any) -> None:
    """One pass over the texts a step; the first, which warms up, over a few of them."""
    sample = encode(texts[:SAMPLE])
    going = gate.open(sample=[[float(number) for number in row] for row in sample], trained=0, **facts)
    some = texts[: 4 * SAMPLE]
    while going:
        encode(some)
        going, some = gate.step(), texts

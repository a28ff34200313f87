"""Windows of items -> packs of tokens -> vectors in one array."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bothways import hardware
from bothways.background import ahead
from bothways.encoding.asked import Asked, TokenVectors
from bothways.encoding.reading import AROUND, WINDOW, Item, Reader, distinct
from bothways.packing import Packing, Rows
from bothways.precision import PRECISIONS, quantise, stored_dim
from bothways.provenance import EncoderSettings
from bothways.text import TextIds


@runtime_checkable
class Computes(Protocol):
    """What is asked of an encoder here."""

    settings: EncoderSettings

    @property
    def device(self) -> torch.device: ...

    @property
    def dim(self) -> int: ...

    def packing(self) -> Any:
        """A context in which rows are packed, if the model computes that exactly; gives the `Packing`."""

    def token_states(self, rows: Rows) -> Tensor: ...

    def pooled(self, hidden: Tensor, pool_mask: Tensor) -> Tensor: ...

    def rows(self, texts: Sequence[str], around: Sequence[AROUND], *, with_spans: bool = False) -> list[TextIds]: ...

    def pieces(self, text: str, around: AROUND, *, with_spans: bool = False) -> list[tuple[int, TextIds]]: ...


@torch.no_grad()
def encode(source: Computes, texts: Sequence[str], around: Sequence[AROUND], asked: Asked) -> Any:
    """Vectors of texts, shape (texts, stored dim), or for output="token" a list of `TokenVectors`.

    `around` has what stands before and after each text. Equal texts are computed once. Warns with the count of texts
    that were too long.
    """
    dim = asked.dim_of(source.dim)
    firsts, places = distinct(texts, around)
    spans = asked.output == "token"
    reader = Reader(
        partial(source.rows, with_spans=spans),
        partial(source.pieces, with_spans=spans),
        source.settings.max_length,
        asked,
    )
    windows = (firsts[start : start + WINDOW] for start in range(0, len(firsts), WINDOW))
    made_of = (reader.items(texts, around, window) for window in windows)
    kept: Any = [None] * len(firsts)
    if not spans:
        kept = np.empty((len(firsts), stored_dim(dim, asked.precision)), dtype=PRECISIONS[asked.precision])
    compute = Compute(source, asked, dim)
    # A single row is as fast as it is.
    with ExitStack() as stack:
        packed = stack.enter_context(source.packing()) if len(firsts) > 1 else None
        advance = stack.enter_context(_bar(asked, len(firsts)))
        coming = stack.enter_context(closing(ahead(made_of)))
        for number, items in enumerate(coming):
            made = compute.tokens(items, packed, advance) if spans else compute.texts(items, packed, advance)
            kept[number * WINDOW : number * WINDOW + len(items)] = made
    _warn(reader, places, source.settings.max_length)
    if len(firsts) < len(places):
        kept = [kept[place] for place in places] if spans else kept[places]
    return _on(source.device, kept) if asked.as_tensor else kept


def _on(device: torch.device, found: Any) -> Any:
    if isinstance(found, list):
        return [replace(item, vectors=torch.from_numpy(item.vectors).to(device)) for item in found]
    return torch.from_numpy(found).to(device)


def shortened(vectors: Float[Tensor, "texts dim"], dim: int, settings: EncoderSettings) -> Float[Tensor, "texts kept"]:
    """The first `dim` numbers of each vector, of unit length again if the encoder's vectors are."""
    if dim == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dim]
    return F.normalize(kept, dim=-1) if settings.normalize else kept


class Compute:
    """From the items of a window to what is kept of it."""

    def __init__(self, source: Computes, asked: Asked, dim: int) -> None:
        self.source, self.asked, self.dim = source, asked, dim
        self.most: int | None = None
        """Tokens at once, since the memory ran out."""

    def texts(self, items: list[Item], packed: Packing | None, advance: Any) -> NDArray[Any]:
        """One vector for each item."""
        device = self.source.device
        # On the device until the window is done: copying each batch back would wait for it.
        found = torch.empty((len(items), self.source.dim), dtype=torch.float32, device=device)
        for group, states in self._groups(items, packed, advance):
            found[torch.tensor(group, device=device)] = self._vectors([items[number] for number in group], states)
        found = shortened(found, self.dim, self.source.settings)
        return quantise(found.cpu().numpy(), self.asked.precision)

    def tokens(self, items: list[Item], packed: Packing | None, advance: Any) -> list[TokenVectors]:
        """The tokens of each item."""
        found: dict[int, TokenVectors] = {}
        for group, states in self._groups(items, packed, advance):
            numbers = states[:, : self.dim].float().cpu().numpy()
            start = 0
            for number in group:
                end = start + len(items[number])
                found[number] = self._of_text(items[number], numbers[start:end])
                start = end
        return [found[number] for number in range(len(items))]

    def _groups(self, items: list[Item], packed: Packing | None, advance: Any) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of the items that are computed together, and the states of all their tokens."""
        lengths = [len(item) for item in items]
        if not lengths:
            return
        budget = self._budget()
        waiting = [[0]] if packed is None else packed.groups(lengths, budget)
        waiting.reverse()
        while waiting:
            group = waiting.pop()
            try:
                states = self._states([row for number in group for row in items[number].rows], budget)
            except Exception as problem:
                if len(group) == 1 or not hardware.is_out_of_memory(problem):
                    raise
                half = len(group) // 2
                waiting += [group[half:], group[:half]]
                self.most = sum(lengths[number] for number in group) // 2
                continue
            yield group, states
            advance(len(group))

    def _budget(self) -> int:
        # Long rows are not computed one by one: here no activations are kept, and short ones may go with them.
        chosen = hardware.choose_tokens_per_batch(self.asked.tokens_per_batch, self.source.device, 1).value
        return chosen if self.most is None else min(chosen, self.most)

    def _states(self, rows: list[TextIds], budget: int) -> Float[Tensor, "tokens dim"]:
        """The states of all tokens, row after row; the rows of a text in many pieces in several passes."""
        parts, start, tokens = [], 0, 0
        for end, row in enumerate(rows):
            if end > start and tokens + len(row) > budget and len(rows) > 1:
                parts.append(self.source.token_states([row.ids for row in rows[start:end]]))
                start, tokens = end, 0
            tokens += len(row)
        parts.append(self.source.token_states([row.ids for row in rows[start:]]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _vectors(self, items: list[Item], states: Tensor) -> Float[Tensor, "texts dim"]:
        """Every text pooled over the tokens of all its rows."""
        hidden = nn.utils.rnn.pad_sequence(states.split([len(item) for item in items]), batch_first=True)
        mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        for number, item in enumerate(items):
            start = 0
            for row in item.rows:
                mask[number, start : start + len(row)] = row.pool_tensor
                start += len(row)
        return self.source.pooled(hidden, mask.to(hidden.device, non_blocking=True))

    def _of_text(self, item: Item, states: NDArray[np.float32]) -> TokenVectors:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        kept: list[int] = []
        position = 0
        for row, begin in zip(item.rows, item.starts, strict=True):
            assert row.spans is not None
            for token, span in zip(row.ids, row.spans, strict=True):
                if span is not None:
                    ids.append(token)
                    spans.append((span[0] + begin, span[1] + begin))
                    kept.append(position)
                position += 1
        return TokenVectors(ids, spans, quantise(states[kept], self.asked.precision))


def _warn(reader: Reader, places: list[int], max_length: int) -> None:
    if not reader.too_long:
        return
    # Of equal texts only the first was looked at.
    copies = Counter(places)
    count = sum(copies[places[position]] for position in reader.too_long)
    done = "computed in pieces" if reader.asked.overflow == "chunk" else "cut"
    were = f"{count} of {len(places)} texts have more than max_length={max_length} tokens and were {done}."
    warnings.warn(were, stacklevel=5)


@contextmanager
def _bar(asked: Asked, texts: int) -> Iterator[Any]:
    """Calls with a number of texts that are done; a bar with rate and time on stderr, where one is asked for."""
    if not asked.show_progress:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(asked.call, total=texts)
        yield lambda count: progress.advance(task, count)

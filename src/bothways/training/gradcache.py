"""The gradient of a loss on the vectors of many rows, in forward passes that fit the memory, on one process or many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bothways.encoder import Encoder
from bothways.text import TextIds
from bothways.training.compiled import is_compiled
from bothways.training.meeting import exchange
from bothways.training.processes import Place
from bothways.training.randomness import seed_everything
from bothways.training.task import Cut, Group, Part, shares

Loss = Callable[[Float[Tensor, "rows dim"]], Float[Tensor, ""]]
"""Vectors of all rows of the global batch, in their order -> one number."""


def gradcache(
    encoder: Encoder,
    rows: Sequence[TextIds],
    loss: Loss,
    *,
    seed: Sequence[int],
    place: Place,
    cut: Cut,
    alive: float = math.inf,
) -> Iterator[Part]:
    """Parts of `loss` of the vectors of all `rows`, whose gradients add up to those of one big batch.

    The rows of this process go through the model pass by pass, as `cut` puts rows of like length together; the vectors
    of all processes are gathered, each computes the whole loss and sends back the gradient of its own rows alone. Its
    value is in the first part of the main process, so that the sum over parts and processes has it once.

    Graphs are kept of the last passes, as long as these have no more than `alive` tokens together, or than the largest
    pass has: so at least of one. The others are computed without graphs first and again with them, under the dropout of
    the first time, which is seeded by `seed`, the process and the number of the pass. Without dropout nothing but
    rounding depends on `cut`, on `alive` or on how many processes there are; with dropout nothing depends on `alive`,
    but other passes or another number of processes draw other dropout, of the same distribution. Where `place.in_step`
    either all graphs are kept (`alive` is infinite) or those of one pass, so that every process makes as many.

    Weights that the loss itself trains get their gradient too, from every process an equal share.

    Raises TrainingError if another process has failed or died.
    Source: Gao et al. 2021 (GradCache, arXiv 2101.06983), sec. 3; the kept passes are ours.
    """
    passes = Passes(encoder, rows, seed, place, cut)
    first = passes.count - passes.kept(alive)
    # Compiled layers draw other dropout where they keep no graph, so that they keep one that is dropped at once.
    with torch.set_grad_enabled(is_compiled(encoder.model)):
        vectors = [passes.embed(number).detach() for number in range(first)]
    graphs = {number: passes.embed(number) for number in range(first, passes.count)}
    whole = exchange(place, passes.in_order([*vectors, *(graph.detach() for graph in graphs.values())]), len(rows))
    value, slopes, learnt = _slopes(loss, whole)
    # What stands beside the vectors in one part alone: of the loss its value, of the loss's own weights their gradient.
    value = value if place.main else torch.zeros_like(value)
    own = sum(((weight * slope).sum() / place.processes for weight, slope in learnt), torch.zeros(()))
    # The fullest pass first: what its graph gives back has room for the gradients of the weights.
    for number in (*graphs, *range(first)):
        stand_in = own + passes.stand_in(number, graphs.pop(number, None), slopes)
        yield Part(stand_in + (value - stand_in.detach()), passes.tokens(number))
        del stand_in
        value, own = torch.zeros_like(value), torch.zeros(())


class Passes:
    """The forward passes by which this process embeds its rows of a global batch."""

    def __init__(self, encoder: Encoder, rows: Sequence[TextIds], seed: Sequence[int], place: Place, cut: Cut) -> None:
        self.encoder, self.rows, self.seed, self.place = encoder, rows, (*seed, place.rank), place
        lengths = [len(row) for row in rows]
        # A process without a row takes part too: it has the shortest one to learn how long a vector is.
        shortest = Group([min(range(len(rows)), key=lambda i: lengths[i])], 0.0)
        self.groups = shares(lengths, place, cut) or [shortest]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.groups)

    def tokens(self, number: int) -> int:
        """Tokens of a pass."""
        return sum(len(self.rows[i]) for i in self.groups[number].rows)

    def kept(self, alive: float) -> int:
        """How many of the last passes have no more than `alive` tokens together, or than the largest has alone."""
        if alive == math.inf or self.place.in_step:
            return self.count if alive == math.inf else 1
        sizes = [self.tokens(number) for number in range(self.count)]
        most = max(alive, *sizes)
        return max(count for count in range(1, self.count + 1) if sum(sizes[-count:]) <= most)

    def embed(self, number: int) -> Float[Tensor, "rows dim"]:
        """Vectors of the rows of a pass, each time under the same dropout."""
        seed_everything(*self.seed, number)
        return self.encoder.embed([self.rows[i] for i in self.groups[number].rows])

    def in_order(self, vectors: Sequence[Tensor]) -> Float[Tensor, "own dim"]:
        """The vectors of all passes in the order of the rows, without what only keeps this process in step."""
        real = [(group.rows, found) for group, found in zip(self.groups, vectors, strict=True) if group.weight]
        places = [i for rows, _ in real for i in rows]
        order = sorted(range(len(places)), key=places.__getitem__)
        if not real:
            return vectors[0][:0]
        return torch.cat([found for _, found in real])[torch.tensor(order, device=vectors[0].device)]

    def stand_in(self, number: int, kept: Tensor | None, slopes: Tensor) -> Float[Tensor, ""]:
        """A number whose gradient is what the loss sends back through this pass, which is computed unless `kept`."""
        group, vectors = self.groups[number], self.embed(number) if kept is None else kept
        return (vectors * slopes[group.rows]).sum() * group.weight


def embed_all(encoder: Encoder, rows: Sequence[TextIds], cut: Cut, seed: Sequence[int]) -> Float[Tensor, "rows dim"]:
    """Vectors of the rows, in their order, all of them by this process, under the dropout of `seed`."""
    passes = Passes(encoder, rows, seed, Place(0, 1), cut)
    return passes.in_order([passes.embed(number) for number in range(passes.count)])


def _slopes(loss: Loss, vectors: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Value of the loss, its gradient, and the weights of its own with theirs."""
    leaf = vectors.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
    own = [weight for weight in _leaves(value) if weight is not leaf]
    slopes, *learnt = torch.autograd.grad(value, [leaf, *own])
    return value.detach(), slopes, list(zip(own, learnt, strict=True))


def _leaves(value: Tensor) -> list[Tensor]:
    """What a backward pass from here would give a gradient to."""
    found: dict[int, Tensor] = {}
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        nodes += [following for following, _ in node.next_functions]
    return list(found.values())

"""The floor of a step: its matrix multiplications alone, at their real shapes, and the rate of a large one."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.peers.parts import ADAPTERS, ATTENTION, LINEAR
from benchmarks.peers.wire import Gate, Job

LARGE = {"cpu": 2048, "cuda": 8192}
"""Edge of the square matrices that measure the rate."""


@dataclass(frozen=True)
class Product:
    """`count` times (groups, rows, inner) @ (groups, inner, columns); the transposed flags say how operands lie."""

    part: str
    rows: int
    inner: int
    columns: int
    count: int = 1
    groups: int = 1
    left_transposed: bool = False
    right_transposed: bool = False

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.count * self.groups


def linear(part: str, rows: int, inner: int, columns: int, count: int, *, trained: bool, inputs: int) -> list[Product]:
    """`count` linear layers, forward; the input's gradient, in `inputs` of them; the weight's, if it is trained."""
    products = [
        Product(part, rows, inner, columns, count, right_transposed=True),
        Product(part, rows, columns, inner, inputs),
        Product(part, columns, rows, inner, count if trained else 0, left_transposed=True),
    ]
    return [product for product in products if product.count]


def trunk(config: Any, given: Job, lengths: Sequence[int], *, backward: bool = True) -> Iterator[Product]:
    """Every matrix multiplication of the decoder layers that a step on rows of such lengths cannot do without.

    Without `backward` those of the forward pass alone.
    """
    full, layers, rows = given.tune == "full", config.num_hidden_layers, sum(lengths)
    width = config.hidden_size
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    inside = config.intermediate_size
    # Queries, keys and values of the first layer read the embedding: frozen under adapters, it gets no gradient.
    first = 0 if full else 1
    for inner, columns, each, frozen in (
        (width, queries, 1, first),
        (width, keys, 2, first),
        (queries, width, 1, 0),
        (width, inside, 2, 0),
        (inside, width, 1, 0),
    ):
        count, inputs = each * layers, each * (layers - frozen) if backward else 0
        yield from linear(LINEAR, rows, inner, columns, count, trained=full and backward, inputs=inputs)
        if not full:
            yield from linear(ADAPTERS, rows, inner, given.lora_r, count, trained=True, inputs=inputs)
            yield from linear(ADAPTERS, rows, given.lora_r, columns, count, trained=True, inputs=count)
    for length, texts in sorted(Counter(lengths).items()):
        heads = texts * config.num_attention_heads
        # Scores and the mix of values; backward: the gradients of both their operands.
        count = 2 * layers if backward else layers
        yield Product(ATTENTION, length, size, length, count, heads, right_transposed=True)
        yield Product(ATTENTION, length, length, size, count, heads)
        if backward:
            yield Product(ATTENTION, length, length, size, count, heads, left_transposed=True)


class Floor:
    """All products of a step, one after the other; operands lie in memory as they would in training."""

    def __init__(self, wanted: Sequence[Product], device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.operands = [(product, *self._operands(product)) for product in wanted]
        edge = LARGE["cuda" if device.startswith("cuda") else "cpu"]
        self.large = (Product("large", edge, edge, edge), *self._operands(Product("large", edge, edge, edge)))

    def run(self) -> dict[str, float]:
        """Part -> seconds; "large": operations a second of the large product."""
        found: dict[str, float] = defaultdict(float)
        for product, left, right in self.operands:
            found[product.part] += self._seconds(product, left, right)
        product, left, right = self.large
        self._seconds(product, left, right)
        found["large"] = product.operations / self._seconds(product, left, right)
        return dict(found)

    def _seconds(self, product: Product, left: torch.Tensor, right: torch.Tensor) -> float:
        begun = self._now()
        for _ in range(product.count):
            torch.matmul(left, right)
        return self._now() - begun

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _operands(self, product: Product) -> tuple[torch.Tensor, torch.Tensor]:
        left = self._operand(product.groups, product.rows, product.inner, product.left_transposed)
        return left, self._operand(product.groups, product.inner, product.columns, product.right_transposed)

    def _operand(self, groups: int, rows: int, columns: int, transposed: bool) -> torch.Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        whole = torch.randn(*([groups] if groups > 1 else []), *shape, device=self.device, dtype=self.dtype)
        return whole.mT if transposed else whole


def measure(wanted: Sequence[Product], given: Job, gate: Gate) -> None:
    """One "step" runs all products once, and tells the seconds of each part."""
    floor = Floor(wanted, given.device, getattr(torch, given.dtype))
    operations: dict[str, int] = defaultdict(int)
    for product in wanted:
        operations[product.part] += product.operations
    going = gate.open(operations=dict(operations))
    while going:
        going = gate.step(floor=floor.run())

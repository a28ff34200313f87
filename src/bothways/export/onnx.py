"""ONNX: one file with trunk, pooling and normalisation, for any number of texts and tokens; float32 or int8."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bothways import loading, provenance, runners
from bothways.artefact import EXPORTED, read_stock_folder
from bothways.bidirectional.recurrence import runs_both_ways
from bothways.encoder import Encoder
from bothways.errors import ConfigError, ConversionError, did_you_mean
from bothways.export.engines.onnx import OnnxEngine
from bothways.runners.fingerprint import SLACK, TEXTS, Exported, worst_difference
from bothways.runners.runner import INPUTS, STATES, VECTORS, computed
from bothways.text import Features

FORMATS = ("float32", "int8")
"""int8: the weights of matrix products; what they are multiplied with is rounded to eight bits as it comes."""
LONGEST = 512
"""Most tokens of a text on which a file is compared with torch."""
LARGEST = 2**31 - 2**24
"""Bytes of weights from which they stand in a file of their own: a file of this format ends at 2 GiB."""


def write(encoder: Encoder, folder: Path, out: Path, *, number_format: str | None = None) -> OnnxEngine:
    """Writes the new folder `out`: model.onnx, tokenizer, config.json, bothways.json and fingerprint.json.

    `number_format` is one of FORMATS, None: float32. Raises ConversionError for a model that torch's exporter does not
    follow, or whose file gives other vectors than torch; ConfigError for an unknown format or a package that is
    missing.
    """
    chosen = checked_format(number_format, FORMATS, "onnx")
    out.mkdir()
    file = out / EXPORTED["onnx"]
    write_file(encoder, file)
    if chosen == "int8":
        quantise(file)
    complete(encoder, folder, out, "onnx", chosen)
    return OnnxEngine(out)


def checked_format(number_format: str | None, known: Sequence[str], target: str) -> str:
    """The first of the known formats for None. Raises ConfigError that names the nearest for an unknown one."""
    if number_format is not None and number_format not in known:
        raise ConfigError(
            f'export --to {target}: number format "{number_format}" is not known. {did_you_mean(number_format, known)}'
        )
    return number_format or known[0]


def write_file(encoder: Encoder, file: Path) -> None:
    """The float32 file alone, compared with torch on batches of several shapes. Raises as `write`."""
    recurrent = runs_both_ways(encoder.model)
    if recurrent:
        raise ConversionError(
            f"{encoder.model.config.model_type} has sub-modules that are run over the text in both directions, as "
            f"{recurrent[0]}, by code that no ONNX file holds. Serve the folder itself: bothways serve."
        )
    exact = encoder
    if encoder.dtype != torch.float32 or encoder.device.type != "cpu":
        exact = copy.deepcopy(encoder).to("cpu", torch.float32)
    exact.eval()
    _exported(exact).save(file, external_data=_bytes(exact.model) > LARGEST)
    _require_same(exact, file)


def quantise(file: Path) -> None:
    """The weights of matrix products to int8, in place, by onnxruntime."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.parent / "float32"
    whole.mkdir()
    # The file names the one with its weights, if they stand in one of their own: both keep their names.
    parts = list(file.parent.glob(f"{file.name}*"))
    for part in parts:
        part.rename(whole / part.name)
    with _quiet():
        quantize_dynamic(
            whole / file.name,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # Sums of products of two full bytes do not fit where a CPU has no instructions for them.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=len(parts) > 1,
        )
    shutil.rmtree(whole)


@torch.no_grad()
def complete(encoder: Encoder, folder: Path, out: Path, backend: str, number_format: str) -> None:
    """All that an exported folder has beside its file; opens it to see that it is what it says."""
    root = loading.resolve(folder)
    own = (root / provenance.FILE).exists()
    shutil.copy((root if own else read_stock_folder(root).transformer) / "config.json", out)
    encoder.tokenizer.save_pretrained(out)
    # A head and what plain loaders do with weights are nothing to a file without either.
    provenance.write(out, encoder.settings, replace(encoder.record, head={}, notes=()))
    runner = runners.RUNNERS[backend](out / EXPORTED[backend], number_format)
    found = computed(runner, encoder.collate(encoder.tokenise(TEXTS)).to("cpu"))
    packages = ("torch", "onnx", "onnxscript", "onnxruntime") + (("openvino",) if backend == "openvino" else ())
    Exported(
        backend=backend,
        number_format=number_format,
        computed_in=runner.number_format,
        texts=TEXTS,
        vectors=tuple(tuple(map(float, vector)) for vector in found.vectors),
        versions={name: version(name) for name in packages},
    ).write(out)
    runners.opened(out, backend, loading.Wish())


class Graph(nn.Module):
    """What the file computes: ids and masks in, vectors and states of tokens out."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pool_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, dim) and (batch, tokens, dim)."""
        hidden = self.encoder.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.encoder.pooled(hidden, pool_mask.bool()), hidden


class WholeGraph(Graph):
    """The same where every token that is no padding is pooled."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(batch, dim) and (batch, tokens, dim)."""
        return super().forward(input_ids, attention_mask, attention_mask)


@torch.no_grad()
def _exported(encoder: Encoder) -> Any:
    """The model as torch's exporter understands it, with the attention it has, or else with eager attention."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("export --to onnx needs onnx and onnxscript: pip install bothways[onnx].") from error
    over_text = encoder.settings.pool_over == "text"
    graph, inputs = (Graph(encoder), INPUTS) if over_text else (WholeGraph(encoder), INPUTS[:2])
    # 0 and 1 would be taken for constants, and two equal sizes for one.
    example = torch.ones(3, 7, dtype=torch.int64)
    example[1, 5:] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    model, own = encoder.model, str(encoder.model.config._attn_implementation)
    failures: list[Exception] = []
    try:
        for attention in dict.fromkeys([own, "eager"]):
            if attention != own:
                model.set_attn_implementation(attention)
            try:
                with _quiet():
                    return torch.onnx.export(
                        graph,
                        tuple(example.clone() for _ in inputs),
                        dynamo=True,
                        dynamic_shapes=dict.fromkeys(inputs, sizes),
                        input_names=list(inputs),
                        output_names=[VECTORS, STATES],
                        verbose=False,
                    )
            except torch.onnx.errors.OnnxExporterError as error:
                failures.append(error)
    finally:
        if str(model.config._attn_implementation) != own:
            model.set_attn_implementation(own)
    cause = failures[0].__cause__ or failures[0]
    said = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    raise ConversionError(
        f"{model.config.model_type} cannot be exported to ONNX: torch's exporter does not follow it "
        f"({type(cause).__name__}: {said[:200]}). Serve the folder itself: bothways serve."
    ) from failures[0]


@torch.no_grad()
def _require_same(encoder: Encoder, file: Path) -> None:
    """The file gives torch's vectors and states: one token, several texts, padded ones, a long one; else an error."""
    runner = runners.RUNNERS["onnx"](file, "float32")
    longest = min(encoder.settings.max_length, LONGEST)
    shapes = {(rows, min(tokens, longest)) for rows, tokens in ((1, 1), (2, 3), (5, 17), (3, longest))}
    for rows, tokens in sorted(shapes):
        features = _drawn(encoder, rows, tokens)
        states = encoder.hidden_states(features)
        found = computed(runner, features)
        real = features.attention_mask.numpy()
        wanted = encoder.pooled(states, features.pool_mask).numpy()
        worst = max(worst_difference(found.vectors, wanted), worst_difference(found.states[real], states.numpy()[real]))
        if not worst <= SLACK:
            raise ConversionError(
                f"{encoder.model.config.model_type} cannot be exported to ONNX: for {rows} texts of at most {tokens} "
                f"tokens the file's vectors differ from torch's by {worst:.1e} of their length. Serve the folder "
                "itself: bothways serve."
            )


def _drawn(encoder: Encoder, rows: int, tokens: int) -> Features:
    """Random ids; every row but the first ends a little earlier than the one before it."""
    embedding: Any = encoder.model.get_input_embeddings()
    vocabulary = min(embedding.weight.shape[0], len(encoder.tokenizer))
    ids = torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([max(1, tokens - 2 * row) for row in range(rows)])
    mask = torch.arange(tokens) < lengths[:, None]
    pooled = mask.clone()
    if encoder.settings.pool_over == "text" and tokens > 1:
        pooled[:, 0] = lengths == 1
    return Features(ids, mask, pooled)


def _bytes(model: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in [*model.parameters(), *model.buffers()])


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the exporters are about their own code, and of packages that nothing here needs."""
    root = logging.getLogger()
    others = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in (root, *others)]
    for logger in (root, *others):
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip((root, *others), levels, strict=True):
            logger.setLevel(level)

"""What an encoder's vectors are, and what they would be otherwise: of the other direction, or pooled in another way.

Computed in float32, one text at a time, so that neither padding nor packing has a part in it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bothways import artefact, loading, provenance
from bothways.bidirectional.attention import NATIVE_KEY, has_native_key, prepare
from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.probe import probe
from bothways.encoder import Encoder
from bothways.pooling import POOLINGS, pool
from bothways.provenance import Direction, EncoderSettings
from bothways.text import after_prompt


@dataclass(frozen=True)
class Way:
    """One way to make a vector of a text: the encoder's own, or one that an engine may have taken instead."""

    direction: Direction
    pooling: str
    pool_over: str


@dataclass(frozen=True)
class Asked:
    """A text, and the name of the stored prompt that stands before it."""

    text: str
    prompt: str | None = None


def open_reference(folder: str | Path, *, device: str | None = None, trust_remote_code: bool = False) -> Encoder:
    """The encoder of a folder in float32. Raises as `Encoder.from_pretrained`."""
    return Encoder.from_pretrained(folder, dtype="float32", device=device, trust_remote_code=trust_remote_code)


def other_direction(encoder: Encoder, folder: str | Path, *, trust_remote_code: bool = False) -> Encoder:
    """The same weights and settings, loaded anew in the other direction, and measured to have it.

    The causal one is what a loader makes of the folder that knows nothing of the keys in its config.json.
    Raises ConversionError if the weights cannot be opened in the other direction.
    """
    root = loading.resolve(folder)
    own = (root / provenance.FILE).exists()
    place = root if own else artefact.read_stock_folder(root).transformer
    wish = loading.Wish(
        "float32", encoder.device, encoder.model.config._attn_implementation, trust_remote_code=trust_remote_code
    )
    if encoder.settings.direction == "bidirectional":
        model = loading.load_trunk(place, _causal_config(place, trust_remote_code), wish)
        probe(model).require_causal(f"the causal twin of {folder}")
        settings = replace(encoder.settings, direction="causal")
    else:
        config = loading.load_config(place, trust_remote_code=trust_remote_code)
        prepare(config)
        model = loading.load_trunk(place, config, wish)
        make_bidirectional(model, windows="native" if has_native_key(model.config) else "keep")
        settings = replace(encoder.settings, direction="bidirectional")
    return Encoder(model, encoder.tokenizer, settings, encoder.record)


@torch.no_grad()
def vectors(encoder: Encoder, asked: Sequence[Asked]) -> dict[Way, np.ndarray]:
    """Vectors of texts, float32 (texts, dim), not scaled, by every way of pooling in the encoder's direction."""
    settings = encoder.settings
    spans = dict.fromkeys([settings.pool_over, "all"])
    found: dict[Way, list[np.ndarray]] = {
        Way(settings.direction, pooling, over): [] for over in spans for pooling in POOLINGS
    }
    distinct = list(dict.fromkeys(asked))
    for one in distinct:
        prompt = settings.prompts[one.prompt] if one.prompt is not None else ""
        features = encoder.collate(encoder.rows(*after_prompt(prompt, [one.text])))
        hidden = encoder.hidden_states(features)
        for way, rows in found.items():
            keep = features.pool_mask if way.pool_over == settings.pool_over else features.attention_mask
            rows.append(pool(hidden, keep, way.pooling)[0].float().cpu().numpy())
    order = [distinct.index(one) for one in asked]
    return {way: np.stack(rows)[order] for way, rows in found.items()}


def own_way(settings: EncoderSettings, direction: Direction) -> Way:
    """The encoder's own pooling, in a direction."""
    return Way(direction, settings.pooling, settings.pool_over)


def unit(found: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, in float64; rows of zeros stay."""
    exact = found.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    scaled: np.ndarray = np.divide(exact, norms, out=np.zeros_like(exact), where=norms > 0)
    return scaled


def _causal_config(place: Path, trust_remote_code: bool) -> Any:
    """The config of a folder as it was before anything in it spoke of both ways.

    From the file and not from the object: a family's own key changes its windows where the object is made.
    """
    plain = json.loads((place / "config.json").read_text(encoding="utf-8"))
    _forget(plain)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        for code in place.glob("*.py"):
            shutil.copy(code, folder)
        config = loading.load_config(Path(folder), trust_remote_code=trust_remote_code)
    prepare(config, "causal")
    return config


def _forget(config: dict[str, Any]) -> None:
    if config.get("is_causal") is False:
        del config["is_causal"]
    if config.get(NATIVE_KEY) in (True, "all"):
        config[NATIVE_KEY] = False
    for part in config.values():
        if isinstance(part, dict):
            _forget(part)

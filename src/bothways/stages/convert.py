"""Step 1 as a stage: the name or folder of a decoder -> an untrained Encoder, proved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from bothways import artefact, card, loading, provenance, text
from bothways.bidirectional.attention import has_native_key, prepare
from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.probe import probe
from bothways.bidirectional.windows import Windows
from bothways.encoder import Encoder
from bothways.errors import ConfigError, did_you_mean
from bothways.pooling import Pooling
from bothways.provenance import Direction, EncoderSettings, Record
from bothways.text import PoolOver

DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class Convert:
    """How a decoder becomes an encoder (LLM2Vec, sec. 2.1)."""

    direction: Direction = "bidirectional"
    """bidirectional; or causal, to compare with: every stage trains such an encoder too, and it stays causal."""
    pooling: Pooling = "mean"
    """How token vectors become one: mean, weighted_mean, last or cls (the first)."""
    pool_over: PoolOver = "all"
    """Pool all tokens, or only the text's own (neither BOS nor instruction)."""
    normalize: bool = True
    """Scale every vector to unit length."""
    max_length: int | None = None
    """Tokens read of one text; None: 512 or the model's limit, whichever is less."""
    append_eos: bool = False
    """End every text with the end-of-sequence token."""
    instruction_template: str = "plain"
    """plain ("{instruction} {text}"), instruct ("Instruct: ... Query: ..."), or a template written out."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Stored prefixes by name; "query" and "document" serve encode_query and encode_document."""
    head: bool = True
    """Keep the language-model head, which MNTP needs."""
    dtype: str | None = None
    """float32, bfloat16, float16, auto (the hardware decides), or None for the checkpoint's own."""
    device: str | None = None
    """Where to load the model; None: the first accelerator that works."""
    attn_implementation: str | None = None
    """As in transformers; auto: the fastest that passes the measurement; None: what transformers picks."""
    windows: Literal["auto", "keep", "full", "native"] = "auto"
    """Sliding windows: keep them on both sides, full to open them, native to halve them by Gemma 3's own key, which
    all engines honour; auto: native where the family has that key, else keep."""
    trust_remote_code: bool = False
    """Run code that the model brings along."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    def __post_init__(self) -> None:
        if self.direction == "causal" and self.windows not in ("auto", "keep"):
            raise ConfigError(
                f'windows="{self.windows}" opens or narrows windows on both sides, but direction="causal" leaves the '
                "model as it came. Leave windows out."
            )


def convert(
    name_or_folder: str | Path,
    settings: Convert | None = None,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Encoder:
    """Turn a decoder into an untrained Encoder, and prove that every token sees every token.

    `changes` are fields of `Convert`. Raises ConversionError naming the sub-module that could not be proved
    bidirectional (or, with `direction="causal"`, that sees the future), DataError for a name or folder that holds no
    decoder, ConfigError for a wrong setting.
    Source: LLM2Vec (arXiv 2404.05961), sec. 2.1.
    """
    chosen = _changed(settings or Convert(), changes)
    begun = time.monotonic()
    folder = loading.resolve(name_or_folder, chosen.revision)
    config = loading.load_config(folder, trust_remote_code=chosen.trust_remote_code)
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=chosen.trust_remote_code)
    stored = _stored_settings(chosen, config, tokenizer)
    pad = text.ensure_pad_token(tokenizer)
    if chosen.append_eos:
        text.append_eos(tokenizer)
    stripped = chosen.pool_over == "text" and text.ignore_trailing_space(tokenizer, list(chosen.prompts.values()))
    wish = loading.Wish(
        chosen.dtype,
        chosen.device,
        chosen.attn_implementation,
        chosen.trust_remote_code,
        chosen.revision,
        model_kwargs,
    )
    model, head = loading.load_decoder(folder, config, wish, with_head=chosen.head)
    if chosen.direction == "bidirectional":
        kernel = "auto" if chosen.attn_implementation == "auto" else None
        certificate = make_bidirectional(model, windows=stored.windows, attn_implementation=kernel)
    else:
        prepare(model.config, "causal")
        certificate = probe(model)
        certificate.require_causal(str(name_or_folder))
    record = Record(base=str(name_or_folder), certificate=certificate).add(
        "convert",
        settings={
            **vars(chosen),
            "prompts": dict(chosen.prompts),
            "max_length": stored.max_length,
            "windows": stored.windows,
        },
        base_fingerprint=getattr(config, "_commit_hash", None)
        or provenance.fingerprint_files(loading.weight_files(folder)),
        base_license=card.license_of(folder),
        pad_token=pad,
        tokenizer_ignores_trailing_space=stripped,
        seconds=round(time.monotonic() - begun, 2),
    )
    return Encoder(model, tokenizer, stored, record, head)


def _stored_settings(chosen: Convert, config: Any, tokenizer: Any) -> EncoderSettings:
    limit = artefact.length_limit(config, tokenizer.model_max_length)
    wanted = chosen.max_length or min(DEFAULT_MAX_LENGTH, limit)
    if wanted > limit:
        raise ConfigError(
            f"max_length={wanted}, but the model reads at most {limit} tokens. Use max_length={limit} or less."
        )
    return EncoderSettings(
        pooling=chosen.pooling,
        pool_over=chosen.pool_over,
        normalize=chosen.normalize,
        max_length=wanted,
        append_eos=chosen.append_eos,
        instruction_template=chosen.instruction_template,
        prompts=dict(chosen.prompts),
        direction=chosen.direction,
        windows=_windows(chosen, config),
    )


def _windows(chosen: Convert, config: PreTrainedConfig) -> Windows:
    if chosen.direction == "causal":
        return "keep"
    if chosen.windows != "auto":
        return chosen.windows
    return "native" if has_native_key(config) else "keep"


def _changed(settings: Convert, changes: Mapping[str, Any]) -> Convert:
    known = [item.name for item in fields(Convert)]
    for name in changes:
        if name not in known:
            raise ConfigError(f'convert: unknown setting "{name}". {did_you_mean(name, known)}')
    return replace(settings, **changes)

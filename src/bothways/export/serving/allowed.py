"""Which encoders a server serves right, by the table of `bothways.engines`; what it does not is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bothways.bidirectional.attention import NATIVE_KEY
from bothways.bidirectional.windows import windowed_layers
from bothways.engines import ENGINES, NATIVE_FAMILIES, Engine, Key
from bothways.errors import ConfigError
from bothways.export.serving import SERVERS

if TYPE_CHECKING:
    from bothways.encoder import Encoder

WINDOWS = {
    "vllm": "sees one token less to each side of them",
    "tei": "was not found to open both sides of them",
}
"""What a server makes of the windows of a family that was converted by `is_causal`, where a text exceeds them."""
SAMPLE = ("a", "Two words and a few more.")


def require_served(to: str, encoder: Encoder, folder: Path) -> Key:
    """The key by which the server `to` serves an encoder right. Raises ConfigError that says why it does not."""
    engine, settings = ENGINES[to], encoder.settings
    call = f"export {folder} --to {to}"
    if settings.direction == "causal":
        raise ConfigError(
            f"{call}: the encoder is causal, and what is exported here is what makes a server look both ways. "
            f"Convert its base without --direction causal, or serve {folder} itself."
        )
    family = str(encoder.model.config.model_type)
    if family not in engine.families:
        raise ConfigError(f"{call}: {unserved(engine, family)} {_way_out(to, encoder, folder)}")
    if settings.pooling not in engine.poolings:
        have = ", ".join(sorted(engine.poolings))
        raise ConfigError(
            f'{call}: {engine.name} does not know pooling="{settings.pooling}", only {have}. '
            f"{_way_out(to, encoder, folder)}"
        )
    if not pools_everything(encoder):
        raise ConfigError(
            f'{call}: {engine.name} pools all tokens of its input, and pool_over="text" leaves out the prompt and the '
            f'beginning-of-sequence token. Convert and train with pool_over="all". {_way_out(to, encoder, folder)}'
        )
    key = engine.serves(family, native=is_native(encoder), pooling=settings.pooling, pool_over="all")
    if key is None:
        raise ConfigError(
            f"{call}: {engine.name} looks both ways in {family} by the family's own key alone, which also halves its "
            "windows: another function than the one that this encoder was converted to. Convert and train with "
            f"--windows native. {_way_out(to, encoder, folder)}"
        )
    _require_within_windows(to, encoder, call)
    return key


def unserved(engine: Engine, family: str) -> str:
    """That an engine does not serve a family both ways, and which ones it does."""
    own = ", ".join(sorted(set(engine.families) - engine.plugin))
    with_plugin = f", and where bothways is installed beside it {', '.join(sorted(engine.plugin))}"
    found = "measured" if engine.how == "run" else "as its source was read"
    return (
        f"{family} is not among the families that {engine.name} {engine.version} serves both ways ({found}): {own}"
        f"{with_plugin if engine.plugin else ''}. Others it refuses, or serves causal without a word."
    )


def pools_everything(encoder: Encoder) -> bool:
    """Whether pooling over all tokens of an input is what the encoder does, with every stored prompt."""
    if encoder.settings.pool_over == "all":
        return True
    # The text's own tokens are all there are, where the tokenizer adds none and no prompt stands before them.
    rows = encoder.tokenise(list(SAMPLE))
    return not encoder.settings.prompts and bool(encoder.collate(rows).pool_mask.sum() == sum(map(len, rows)))


def is_native(encoder: Encoder) -> bool:
    """Whether the encoder was converted by its family's own key (Gemma 3)."""
    config = encoder.model.config
    return config.model_type in NATIVE_FAMILIES and bool(getattr(config, NATIVE_KEY, False))


def _require_within_windows(to: str, encoder: Encoder, call: str) -> None:
    engine, settings = ENGINES[to], encoder.settings
    window = min(windowed_layers(encoder.model).values(), default=None)
    if is_native(encoder) or window is None or window >= settings.max_length or settings.windows == "full":
        return
    raise ConfigError(
        f"{call}: texts of up to {settings.max_length} tokens go beyond the windows of {window} of "
        f"{encoder.model.config.model_type}, and {engine.name} {engine.version} {WINDOWS[to]}. Convert with "
        f"--windows full, or with --max-length {window}; or serve it with `bothways serve`."
    )


def _way_out(to: str, encoder: Encoder, folder: Path) -> str:
    family, settings, native = str(encoder.model.config.model_type), encoder.settings, is_native(encoder)
    others = [
        name
        for name in SERVERS
        if name != to
        and ENGINES[name].serves(family, native=native, pooling=settings.pooling, pool_over=settings.pool_over)
    ]
    also = f" Export it --to {' or '.join(others)}, or" if others else ""
    return f"{also} serve it with `bothways serve {folder}`.".strip().capitalize()

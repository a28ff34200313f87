"""The folder of an encoder -> its parts in memory, its certificate measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bothways import artefact, loading, provenance, text
from bothways.bidirectional.attention import NATIVE_KEY, has_native_key, prepare, says_bidirectional
from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.conversion import make_bidirectional, require_even
from bothways.bidirectional.probe import probe
from bothways.errors import ConversionError, DataError
from bothways.head import Head
from bothways.provenance import EncoderSettings, Record

Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, EncoderSettings, Record, Head | None]
"""What an encoder is made of."""


def opened(name_or_folder: str | Path, wish: loading.Wish) -> Parts:
    """What a bothways folder, or a sentence-transformers folder, holds. Raises as `Encoder.from_pretrained` says."""
    folder = loading.resolve(name_or_folder, wish.revision)
    if (folder / provenance.FILE).exists():
        return _own(folder, wish)
    if (folder / "modules.json").exists():
        return _stock(str(name_or_folder), folder, wish)
    raise DataError(
        f"{folder} is neither a bothways nor a sentence-transformers folder. "
        f"If it is a decoder, convert it: bothways convert {name_or_folder} --out DIR."
    )


def _own(folder: Path, wish: loading.Wish) -> Parts:
    settings, record = provenance.read(folder)
    _refuse_exported(folder)
    if record.certificate is None:
        raise ConversionError(f"{folder} has no certificate in {provenance.FILE}. Convert again.")
    config = loading.load_config(folder, trust_remote_code=wish.trust_remote_code)
    if settings.direction == "bidirectional" and not says_bidirectional(config):
        key = "use_bidirectional_attention=true" if settings.windows == "native" else "is_causal=false"
        raise ConversionError(
            f"{folder} was converted, but its config.json no longer says {key}: any other loader would open it "
            "causal. Restore that line, or convert again."
        )
    prepare(config, settings.direction)
    model = loading.load_trunk(folder, config, wish)
    certificate = measured(model, settings, wish.attn_implementation)
    record.certificate.require_same(certificate, folder)
    certificate = replace(certificate, converted=record.certificate.converted)
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=wish.trust_remote_code)
    head = loading.load_head(folder, model, record.head)
    return model, tokenizer, settings, replace(record, certificate=certificate), head


def _refuse_exported(folder: Path) -> None:
    """Nothing, unless a folder was exported for another backend and holds no weights of torch; then DataError."""
    found = [backend for backend, file in artefact.EXPORTED.items() if (folder / file).exists()]
    if found and not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder} was exported for {found[0]} and has no weights for torch. "
            f'Open it with backend="{found[0]}"; to train or convert, open the folder that it was exported from.'
        )


def _stock(name: str, folder: Path, wish: loading.Wish) -> Parts:
    foreign = artefact.read_stock_folder(folder)
    config = loading.load_config(foreign.transformer, trust_remote_code=wish.trust_remote_code)
    kwargs = {**foreign.model_kwargs, **(wish.model_kwargs or {})}
    if wish.attn_implementation is not None:
        kwargs.pop("attn_implementation", None)
    model = loading.load_trunk(foreign.transformer, config, replace(wish, model_kwargs=kwargs))
    certificate = probe(model)
    direction: provenance.Direction = "causal" if certificate.direction == "causal" else "bidirectional"
    native = has_native_key(model.config) and getattr(model.config, NATIVE_KEY)
    settings = replace(foreign.settings, direction=direction, windows="native" if native else "keep")
    if direction == "bidirectional":
        # Some of it may still hide the future, as where a setting was lost when the folder was saved again.
        certificate.require_bidirectional(str(folder))
        require_even(model, certificate)
        # What is bidirectional already does not change; what is saved of it will say so to every loader.
        certificate = replace(make_bidirectional(model, windows=settings.windows), converted=False)
    tokenizer = loading.load_tokenizer(foreign.transformer, trust_remote_code=wish.trust_remote_code)
    text.ensure_pad_token(tokenizer)
    return model, tokenizer, settings, Record(base=name, certificate=certificate), None


def measured(model: PreTrainedModel, settings: EncoderSettings, attn_implementation: str | None = None) -> Certificate:
    """The certificate of a loaded model, made what its settings say first. Raises ConversionError if it cannot be."""
    if settings.direction == "causal":
        return probe(model)
    kernel = "auto" if attn_implementation == "auto" else None
    return make_bidirectional(model, windows=settings.windows, attn_implementation=kernel)

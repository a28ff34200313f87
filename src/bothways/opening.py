"""The folder of an encoder, and adapters on it -> its parts in memory, its certificate measured again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bothways import artefact, loading, lora, provenance, references, text
from bothways.bidirectional.attention import NATIVE_KEY, has_native_key, prepare, says_bidirectional
from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.conversion import make_bidirectional, require_even
from bothways.bidirectional.probe import probe
from bothways.errors import ConversionError, DataError
from bothways.head import Head
from bothways.provenance import EncoderSettings, Record
from bothways.stack import Stack, stacked

RESAVED = "saved by sentence-transformers"
"""The last stage in bothways.json where sentence-transformers wrote the folder: its own files count then."""
LOST = (
    "Its config says that it was converted, so something was lost since: sentence-transformers, when it saves a folder "
    "again, drops `attn_implementation` from sentence_bert_config.json.\n  Open the folder that bothways wrote, or put "
    'the line back: "model_args": {{"attn_implementation": "eager"}} in {file}.'
)

Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, EncoderSettings, Record, Head | None]
"""What an encoder is made of."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def opened(name_or_folder: str | Path, wish: loading.Wish) -> Parts:
    """What a folder holds, with the adapters of `wish` merged into it. Raises as `Encoder.from_pretrained` says."""
    stack = stacked(name_or_folder, wish)
    marks = (provenance.FILE, "modules.json")
    known = next((folder for folder in stack.folders if any((folder / mark).exists() for mark in marks)), None)
    if known is not None:
        own = (known / provenance.FILE).exists()
        return _own(stack, wish) if own else _stock(str(name_or_folder), known, stack, wish)
    if stack.adapters or stack.is_made:
        return _reference(stack, wish)
    raise DataError(
        f"{stack.ground} is neither a bothways nor a sentence-transformers folder. "
        f"If it is a decoder, convert it: bothways convert {name_or_folder} --out DIR."
    )


def _own(stack: Stack, wish: loading.Wish) -> Parts:
    folder = stack.ground
    settings, record = provenance.read(folder)
    _refuse_exported(folder)
    if record.certificate is None:
        raise ConversionError(f"{folder} has no certificate in {provenance.FILE}. Convert again.")
    settings = _as_resaved(folder, settings, record)
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
    if stack.adapters:
        _merge(model, stack)
        certificate = measured(model, settings, wish.attn_implementation)
    certificate = replace(certificate, converted=record.certificate.converted)
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=wish.trust_remote_code)
    text.ensure_pad_token(tokenizer)
    head = loading.load_head(folder, model, record.head)
    return model, tokenizer, settings, _recorded(replace(record, certificate=certificate), stack), head


def _refuse_exported(folder: Path) -> None:
    """Nothing, unless a folder was exported for another backend and holds no weights of torch; then DataError."""
    found = [backend for backend, file in artefact.EXPORTED.items() if (folder / file).exists()]
    if found and not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder} was exported for {found[0]} and has no weights for torch. "
            f'Open it with backend="{found[0]}"; to train or convert, open the folder that it was exported from.'
        )


def _stock(name: str, folder: Path, stack: Stack, wish: loading.Wish) -> Parts:
    foreign = artefact.read_stock_folder(folder)
    if foreign.two_way:
        raise ConversionError(_needs_record(folder))
    kwargs = {**foreign.model_kwargs, **(wish.model_kwargs or {})}
    if wish.attn_implementation is not None:
        kwargs.pop("attn_implementation", None)
    model = _ground(stack, replace(wish, model_kwargs=kwargs))
    _merge(model, stack)
    certificate = probe(model)
    _require_kept(model, certificate, foreign.transformer)
    direction: provenance.Direction = "causal" if certificate.direction == "causal" else "bidirectional"
    native = has_native_key(model.config) and getattr(model.config, NATIVE_KEY)
    settings = replace(foreign.settings, direction=direction, windows="native" if native else "keep")
    if direction == "bidirectional":
        certificate.require_bidirectional(str(folder))
        require_even(model, certificate)
        # What is bidirectional already does not change; what is saved of it will say so to every loader.
        certificate = replace(make_bidirectional(model, windows=settings.windows), converted=False)
    tokenizer = _tokenizer([foreign.transformer, *stack.folders], wish)
    text.ensure_pad_token(tokenizer)
    if not foreign.says_length:
        settings = replace(settings, max_length=artefact.length_limit(model.config, tokenizer.model_max_length))
    base = stack.name if stack.adapters else name
    return model, tokenizer, settings, _recorded(Record(base=base, certificate=certificate), stack), None


def _ground(stack: Stack, wish: loading.Wish) -> PreTrainedModel:
    """The model at the bottom of a sentence-transformers folder, which an adapter in it may name."""
    folder = stack.ground
    if (folder / provenance.FILE).exists():
        return _own(replace(stack, adapters=()), wish)[0]
    if (folder / "modules.json").exists():
        folder = artefact.transformer_of(folder)
    config = loading.load_config(folder, trust_remote_code=wish.trust_remote_code)
    return loading.load_trunk(folder, config, wish)


def _reference(stack: Stack, wish: loading.Wish) -> Parts:
    """A decoder under adapters, or what the reference saved as a whole, under the settings of the reference."""
    begun = time.monotonic()
    config = loading.load_config(stack.ground, trust_remote_code=wish.trust_remote_code)
    tokenizer = _tokenizer(stack.folders, wish)
    said = references.LLM2VecConfig.read(stack.top)
    settings = references.settings_of(said, stack.names(), config, tokenizer)
    pad = text.ensure_pad_token(tokenizer)
    if stack.is_made:
        # It names code that goes with another version of transformers.
        vars(config).pop("auto_map", None)
    model, head = loading.load_decoder(stack.ground, config, wish, with_head=_has_head(config))
    _merge(model, stack)
    certificate = measured(model, settings, wish.attn_implementation)
    names = [name for name in stack.names() if name in references.CHATS]
    record = Record(base=(names or [stack.name])[0], certificate=certificate).add(
        "convert",
        settings={key: value for key, value in asdict(settings).items() if key != "append_eos"},
        llm2vec=asdict(said),
        weights=stack.name,
        base_fingerprint=getattr(config, "_commit_hash", None)
        or provenance.fingerprint_files(loading.weight_files(stack.ground)),
        pad_token=pad,
        seconds=round(time.monotonic() - begun, 2),
    )
    return model, tokenizer, settings, _recorded(record, stack), head


def _has_head(config: PreTrainedConfig) -> bool:
    trunk = any(name.endswith("Model") for name in config.architectures or ())
    return not trunk or bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _merge(model: PreTrainedModel, stack: Stack) -> None:
    for adapter in stack.adapters:
        lora.merge(model, adapter)


def _recorded(record: Record, stack: Stack) -> Record:
    for adapter in stack.adapters:
        shape = {key: adapter.config.get(key) for key in ("r", "lora_alpha", "use_rslora", "use_dora")}
        record = record.add(
            "adapter", name=adapter.name, fingerprint=adapter.fingerprint(), names_base=adapter.base, settings=shape
        )
    return record


def _tokenizer(folders: Sequence[Path], wish: loading.Wish) -> PreTrainedTokenizerBase:
    """Of the first folder that has one: what was asked for, before what it was trained on."""
    has = (folder for folder in folders if any((folder / file).exists() for file in TOKENIZER_FILES))
    return loading.load_tokenizer(next(has, folders[-1]), trust_remote_code=wish.trust_remote_code)


def measured(model: PreTrainedModel, settings: EncoderSettings, attn_implementation: str | None = None) -> Certificate:
    """The certificate of a loaded model, made what its settings say first. Raises ConversionError if it cannot be."""
    if settings.direction == "causal":
        return probe(model)
    kernel = "auto" if attn_implementation == "auto" else None
    return make_bidirectional(model, windows=settings.windows, attn_implementation=kernel)


def _require_kept(model: PreTrainedModel, certificate: Certificate, folder: Path) -> None:
    """Nothing, unless a folder says that it was converted, and is measured to hide the future.

    Raises ConversionError that says what is likely to have been lost, and how to mend it.
    """
    if says_bidirectional(model.config) and certificate.direction != "bidirectional":
        try:
            certificate.require_bidirectional(str(folder))
        except ConversionError as error:
            lost = LOST.format(file=folder / "sentence_bert_config.json")
            raise ConversionError(f"{error}\n  {lost}") from None


def _needs_record(folder: object) -> str:
    return (
        f"{folder} needs code to see both ways ({artefact.TWO_WAY} in modules.json), and {provenance.FILE}, which says "
        "how, is missing. Copy the whole folder that bothways wrote, or convert again."
    )


def _as_resaved(folder: Path, settings: EncoderSettings, record: Record) -> EncoderSettings:
    """The settings, as sentence-transformers last left them, if it wrote the folder."""
    if not record.stages or record.stages[-1]["stage"] != RESAVED:
        return settings
    found = artefact.read_stock_folder(folder).settings
    return replace(
        settings,
        pooling=found.pooling,
        pool_over=found.pool_over,
        normalize=found.normalize,
        max_length=found.max_length,
        prompts=found.prompts,
    )


@dataclass
class Reopened:
    """What bothways.json says of a model that sentence-transformers has loaded, and saves: see `two_way_module`."""

    settings: EncoderSettings
    record: Record

    @classmethod
    def of(cls, model: PreTrainedModel, file: Path | None, name: object) -> Reopened:
        """Makes a loaded model what `file`, its bothways.json, says, in place; `name` is how errors call the model.

        Raises ConversionError if there is no such file, or the model cannot be made that.
        """
        if file is None:
            raise ConversionError(_needs_record(name))
        settings, record = provenance.read(file.parent)
        if record.certificate is None:
            raise ConversionError(f"{name} has no certificate in {provenance.FILE}. Convert again.")
        certificate = measured(model, settings)
        record.certificate.require_same(certificate, name)
        return cls(settings, replace(record, certificate=replace(certificate, converted=record.certificate.converted)))

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """bothways.json of the model as it is now, measured again. Raises ConversionError if it hides the future."""
        converted = self.record.certificate is None or self.record.certificate.converted
        certificate = replace(measured(model, self.settings), converted=converted)
        stages = tuple(stage for stage in self.record.stages if stage["stage"] != RESAVED)
        head: Mapping[str, Any] = self.record.head if self.record.head.get("tied") else {}
        record = replace(self.record, stages=stages, certificate=certificate, head=head).add(RESAVED)
        provenance.write(folder, self.settings, record)

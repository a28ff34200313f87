"""What plain sentence-transformers makes of an encoder's folder: the backend it needs, and where it differs."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.conversion import plain_backend
from bothways.provenance import EncoderSettings
from bothways.text import counts_exactly

DEFAULT_BACKEND = "sdpa"
CAUSAL = (
    "A plain loader opens these weights causal, because part of the conversion lives in code: load this folder with "
    "`bothways.Encoder.from_pretrained`, or, where bothways is installed, with "
    "`SentenceTransformer(FOLDER, trust_remote_code=True)`; without that flag sentence-transformers refuses it. "
    "AutoModel and serving engines do not refuse, and are wrong."
)


def needed_backend(
    model: PreTrainedModel, settings: EncoderSettings, certificate: Certificate | None
) -> tuple[str | None, str | None]:
    """The backend that a stock loader must be told (None: its default will do), and a note if none will do."""
    if settings.direction == "causal" or certificate is None:
        return None, None
    backend = plain_backend(model, certificate)
    return (None if backend == DEFAULT_BACKEND else backend), (CAUSAL if backend is None else None)


def pooling_note(settings: EncoderSettings, tokenizer: PreTrainedTokenizerBase, cosine: float) -> str | None:
    """Where stock code reads or pools a text otherwise; `cosine` is the mean one of texts without a prompt."""
    if settings.text_template != "{text}":
        return (
            f"Every text is read as {settings.text_template!r}, which other code does not put around it: load this "
            "folder with `bothways.Encoder.from_pretrained`."
        )
    if settings.pool_over == "all":
        return None
    if settings.pooling == "weighted_mean":
        return (
            "sentence-transformers weights the tokens of a text by their place in the whole input, prompt and "
            f"beginning-of-sequence token included; the mean cosine of its vectors to this encoder's is {cosine:.4f} "
            "without a prompt."
        )
    inexact = [name for name, prompt in settings.prompts.items() if not counts_exactly(tokenizer, prompt)]
    with_prompt = (
        f'With the stored prompt "{inexact[0]}" it pools another number of tokens too.'
        if inexact
        else "With a stored prompt both are equal."
    )
    return (
        "sentence-transformers also pools the beginning-of-sequence token of a text without a prompt; the mean cosine "
        f"of its vectors to this encoder's is then {cosine:.4f}. {with_prompt}"
    )

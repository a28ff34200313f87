"""Vectors -> the body of an answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from bothways.encoding.flow import shortened
from bothways.provenance import EncoderSettings
from bothways.serve.inputs import Ready


def body_of(ready: Ready, vectors: Float[np.ndarray, "items dim"], settings: EncoderSettings, name: str) -> bytes:
    """As OpenAI has it; "overlong_texts" is ours: how many texts had more tokens than are read at once."""
    kept = shortened(torch.from_numpy(vectors), ready.dim, settings).numpy()
    if ready.request.encoding_format == "base64":
        spelled: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in kept]
    else:
        spelled = kept.tolist()
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": number, "embedding": spelled[place]}
            for number, place in enumerate(ready.places)
        ],
        "model": name,
        "usage": {"prompt_tokens": ready.tokens, "total_tokens": ready.tokens},
        "overlong_texts": ready.overlong,
    }
    return json.dumps(answer, separators=(",", ":")).encode()

"""An encoder behind HTTP: OpenAI's `/v1/embeddings`, texts of all requests packed together.

`bothways serve` is this.
"""

from bothways.serve.settings import Serve

__all__ = ["Serve"]

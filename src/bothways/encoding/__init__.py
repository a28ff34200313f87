"""Many texts -> vectors, as fast as one machine can: what `Encoder.encode` does with the model's forward pass.

Here is what can be asked; `flow.encode` answers it.
"""

from bothways.encoding.asked import Ask, Asked, Output, Overflow, TokenVectors

__all__ = ["Ask", "Asked", "Output", "Overflow", "TokenVectors"]

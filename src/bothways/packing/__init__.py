"""Several texts in one row: no padding, and none sees another. Where that was measured to be exact; else padded rows.

The texts stand one after the other, positions start anew in each, and attention is computed text by text with the
model's own kernel. For that the model is switched to an attention implementation of our own, which transformers calls
in place of its own. Where the mask would be, attention modules are handed a `Sight`: where texts begin and end, and
transformers' own rule of who sees whom (windows included), which is then applied within each text.
"""

from bothways.packing.groups import buckets, packs
from bothways.packing.rows import Packing, Rows, packing, packing_of_copy, token_states
from bothways.packing.sight import Sight, Texts

__all__ = [
    "Packing",
    "Rows",
    "Sight",
    "Texts",
    "buckets",
    "packing",
    "packing_of_copy",
    "packs",
    "token_states",
]

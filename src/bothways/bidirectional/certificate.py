"""What was measured of step 1: for each sub-module that mixes tokens, how far it sees to the left and to the right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from bothways.errors import ConversionError

Seen = Literal["bidirectional", "causal", "partial", "none"]

PADDING_TOLERANCE = 1e-3
"""Largest relative change of a text's float32 hidden states when padding stands beside it; rounding gives 1e-6."""


SHARE_TOLERANCE = 0.01
"""By how much another number format may change the mean share of a gate."""
IGNORES_MASK = "the model ignores attention_mask"


@dataclass(frozen=True)
class Reach:
    """How many tokens away, at most, an output still feels a change of the input, within the probe's length."""

    left: int
    right: int
    even: bool
    """Whether every nearer token is felt too."""

    def direction(self, forgets: bool = False) -> Seen:
        """What this reach amounts to.

        What `forgets`, as a recurrence does, is felt less far where its content says so, and a dilated convolution
        skips tokens: of these, one side may reach half as far as the other, and between them nothing is asked.
        """
        if self.left == self.right == 0:
            return "none"
        if self.right == 0:
            return "causal"
        if forgets:
            return "bidirectional" if max(self.left, self.right) <= 2 * min(self.left, self.right) else "partial"
        return "bidirectional" if self.left == self.right and self.even else "partial"


@dataclass(frozen=True)
class Mixer:
    """One sub-module that mixes tokens, as measured."""

    name: str
    kind: str
    """Its class."""
    treatment: str
    """What was changed on the sub-module itself, empty if the config's flag was enough."""
    unpadded: Reach
    padded: Reach
    """Among the real tokens of a right-padded batch."""
    sees_padding: bool
    """Whether a real token feels a change of the padding beside it."""
    attends: bool = True
    """Whether it takes a softmax over the tokens; what does not is a recurrence or a convolution."""
    balance: float | None = None
    """Of what a flat query takes from both sides, the share from the left; 0.5 is even, None: it takes nothing."""
    share: float | None = None
    """Of what is run in both directions, the mean share of the second one, which is learned; None: it is not gated."""
    window: int | None = None
    """How many tokens away it sees where that is more than the probe's length: measured on a shrunken twin."""

    @property
    def direction(self) -> Seen | Literal["mixed"]:
        seen = {reach.direction(forgets=not self.attends) for reach in (self.unpadded, self.padded)}
        return seen.pop() if len(seen) == 1 else "mixed"


@dataclass(frozen=True)
class Certificate:
    """Who sees whom in a model, measured per mixing sub-module on the backend in use, unpadded and padded."""

    architecture: str
    attn_implementation: str
    dtype: str
    tokens: int
    """Length of the probe's texts; a reach of tokens - 1 means the whole text."""
    modules: tuple[Mixer, ...]
    loose: tuple[str, ...]
    """Sub-modules whose output depends on other tokens beyond what the measured ones explain; none in a sound proof."""
    padding_shift: float
    """Relative change of the last hidden states when padding is put beside a text."""
    versions: Mapping[str, str]
    seconds: float = 0.0
    """What the measurement took, in all."""
    notes: tuple[str, ...] = ()
    """What could not be measured."""
    converted: bool = True
    """Whether anything was changed: False for a model that saw both ways as it came."""

    @property
    def direction(self) -> Literal["bidirectional", "causal", "mixed"]:
        found = {module.direction for module in self.modules}
        if found == {"bidirectional"} and not self.loose:
            return "bidirectional"
        return "causal" if found == {"causal"} and not self.loose else "mixed"

    def require_bidirectional(self, what: str | None = None) -> None:
        """Nothing, if every mixing sub-module sees both ways and no padding.

        `what` is how the error names the model (its architecture if None).
        Raises ConversionError that names the first sub-module at fault, the backend, the batch and the way out.
        """
        what = self._named(what)
        for module in self.modules:
            if module.direction != "bidirectional":
                raise ConversionError(f"{what} {self._fault(module)}\n  {self._way_out(module)}")
        self._require_padding_unseen(what)
        if self.loose:
            raise ConversionError(
                f"{what} mixes tokens where it cannot be measured: {self.loose[0]}.\n  {self._way_out(None)}"
            )
        if not self.modules:
            raise ConversionError(
                f"{what}: no sub-module that mixes tokens was found, so nothing can be proved.\n"
                "  Load trained weights, or report the architecture with `bothways show --certificate`."
            )

    def require_causal(self, what: str | None = None) -> None:
        """Nothing, if no token sees a later one, nor padding: what an unconverted encoder should be.

        Raises ConversionError that names the first sub-module at fault.
        """
        what = self._named(what)
        for module in self.modules:
            if module.unpadded.right or module.padded.right:
                raise ConversionError(
                    f"{what} sees the future: {module.name} ({module.kind}).\n"
                    '  It is no causal decoder: use direction="bidirectional".'
                )
        self._require_padding_unseen(what)

    def _named(self, what: str | None) -> str:
        return f'{what or self.architecture} under attn_implementation="{self.attn_implementation}"'

    def _require_padding_unseen(self, what: str) -> None:
        seeing = [module.name for module in self.modules if module.sees_padding]
        if seeing:
            raise ConversionError(f"{what} lets real tokens see padding: {seeing[0]}.\n  {self._way_out(None)}")
        ignores = IGNORES_MASK in self.notes
        # Half precision rounds differently at another length, so there the figure alone decides nothing.
        if ignores or (self.dtype == "float32" and not self.padding_shift <= PADDING_TOLERANCE):
            reason = f": {IGNORES_MASK}" if ignores else ""
            raise ConversionError(
                f"{what}: padding changes a text's hidden states by {self.padding_shift:.1e} of their size "
                f"(at most {PADDING_TOLERANCE:.0e} is allowed){reason}.\n  {self._way_out(None)}"
            )

    def _fault(self, module: Mixer) -> str:
        conditions = {"unpadded batch": module.unpadded, "padded batch": module.padded}
        seen = {name: reach.direction(forgets=not module.attends) for name, reach in conditions.items()}
        wrong = [name for name, direction in seen.items() if direction != "bidirectional"]
        where = f"{module.name} ({module.kind}, {' and '.join(wrong)})"
        reach = conditions[wrong[0]]
        if seen[wrong[0]] == "causal":
            return f"still hides the future: {where}."
        if seen[wrong[0]] == "none":
            return f"does not mix tokens where it should: {where}."
        return f"sees {reach.left} tokens back but {reach.right} ahead, or not all between: {where}."

    def _way_out(self, module: Mixer | None) -> str:
        if module is not None and not module.attends:
            return 'Keep it one-way with direction="causal", or report the architecture.'
        other = "" if self.attn_implementation == "eager" else 'Use attn_implementation="eager", or report '
        return f"{other or 'Report '}the architecture with `bothways show --certificate`."

    def summary(self) -> str:
        """One line: what was measured, where, and how it came out."""
        kinds = ", ".join(dict.fromkeys(module.kind for module in self.modules))
        came = "" if self.converted else " as it came, nothing to convert"
        return (
            f"{self.architecture}: {self.direction}{came}, measured in {len(self.modules)} mixing sub-modules "
            f"({kinds}), unpadded and padded, {self.attn_implementation}, {self.dtype}"
        )

    def rows(self) -> list[dict[str, str]]:
        """One row of text per mixing sub-module, for a table."""
        return [
            {
                "module": module.name,
                "kind": module.kind,
                "treatment": (module.treatment or "config flag")
                + ("" if module.share is None else f" (second: {module.share:.0%})"),
                "unpadded": self._shown(module, module.unpadded),
                "padded": self._shown(module, module.padded) + (", sees padding" if module.sees_padding else ""),
                "past : future": "" if module.balance is None else f"{module.balance:.2f} : {1 - module.balance:.2f}",
            }
            for module in self.modules
        ]

    def kinds(self) -> dict[Mixer, list[str]]:
        """The mixing sub-modules that differ in more than their name -> the names of all that are like them."""
        found: dict[Mixer, list[str]] = {}
        for module in self.modules:
            balance = None if module.balance is None else round(module.balance, 2)
            share = None if module.share is None else round(module.share, 2)
            found.setdefault(replace(module, name="", balance=balance, share=share), []).append(module.name)
        return found

    def _shown(self, module: Mixer, reach: Reach) -> str:
        whole = "all" if module.window is None else str(module.window)
        left, right = (whole if side == self.tokens - 1 else str(side) for side in (reach.left, reach.right))
        return f"{reach.direction(forgets=not module.attends)} ({left} back, {right} ahead)"

    def difference(self, other: Certificate) -> str | None:
        """The first thing in which another certificate of the same encoder differs, in words; None if nothing does.

        Backend, dtype and versions may differ; reach is compared where the probe was the same.
        """
        before, now = ({module.name: module for module in one.modules} for one in (self, other))
        same_probe = (self.tokens, self.attn_implementation) == (other.tokens, other.attn_implementation)
        for name in dict.fromkeys([*before, *now]):
            if name not in now or name not in before:
                return f"{name} mixes tokens in one of them only"
            if before[name].direction != now[name].direction:
                return f"{name} was {before[name].direction}, and is {now[name].direction}"
            was, is_now = before[name].share, now[name].share
            if was is not None and is_now is not None and abs(was - is_now) > SHARE_TOLERANCE:
                return f"{name} let {was:.1%} of its second direction in, and lets {is_now:.1%} in"
            # How far a recurrence is felt depends on rounding where it forgets.
            comparable = same_probe and now[name].attends
            if comparable and (before[name].unpadded, before[name].window) != (now[name].unpadded, now[name].window):
                seen = [one._shown(m[name], m[name].unpadded) for one, m in ((self, before), (other, now))]
                return f"{name} was {seen[0]}, and is {seen[1]}"
        return None

    def require_same(self, measured: Certificate, folder: object) -> None:
        """Nothing, if `measured` is of the encoder in `folder` that this one speaks of; else ConversionError."""
        difference = self.difference(measured)
        if difference is not None:
            raise ConversionError(
                f"{folder} is not what its certificate says: {difference}. Convert again, or restore the files."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `direction` is there to be read and is not read back."""
        plain = asdict(self)
        plain["modules"] = list(plain["modules"])
        return {
            "direction": self.direction,
            **plain,
            "loose": list(self.loose),
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`; raises KeyError or TypeError where an entry is missing or unknown."""
        rest = {key: value for key, value in plain.items() if key != "direction"}
        rest["modules"] = tuple(
            Mixer(**{**module, "unpadded": Reach(**module["unpadded"]), "padded": Reach(**module["padded"])})
            for module in plain["modules"]
        )
        return cls(**{**rest, "loose": tuple(plain["loose"]), "notes": tuple(plain.get("notes", ()))})

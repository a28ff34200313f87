"""Representative entries of transformers' causal-LM mapping come out as stated; a failure is shown and exits with 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import PreTrainedModel

from bothways import architectures as room
from bothways.architectures import Answer, Architecture, Checks, measure, page, sweep
from bothways.architectures.record import Category
from bothways.bidirectional.certificate import Certificate
from bothways.bidirectional.conversion import make_bidirectional
from bothways.bidirectional.probe import probe
from bothways.cli import main
from bothways.errors import ConfigError

FLEX = "flex_attention"
ALL = ("eager", "sdpa", FLEX)
BOTH_DIRECTIONS = "run in both directions"


@dataclass(frozen=True)
class Expected:
    category: Category
    backends: tuple[str, ...]
    """Those that convert."""
    treatment: str = "is_causal=False"
    """The start of one that is among those reported."""
    refusal: str = ""
    """What the refusal under the first backend says."""


EXPECTED = {
    "llama": Expected("attention", ALL),
    "qwen3": Expected("attention", ALL),
    "gemma3_text": Expected("attention", ALL),
    "gpt_oss": Expected("attention", ("eager",)),
    "llama4_text": Expected("attention", ALL, "chunks opened"),
    "gpt_neo": Expected("attention", ("eager",), "buffer bias mirrored"),
    "stablelm": Expected("attention", ("eager", "sdpa")),
    "bloom": Expected("attention", ("eager",), "ALiBi mirrored"),
    "mpt": Expected("attention", ("eager",), "ALiBi mirrored"),
    "falcon": Expected("attention", ("eager", "sdpa")),
    "jamba": Expected("hybrid", ("eager", "sdpa"), BOTH_DIRECTIONS),
    "mamba2": Expected("recurrent", ("eager",), BOTH_DIRECTIONS),
    "rwkv": Expected("recurrent", ("eager",), BOTH_DIRECTIONS),
    "qwen3_next": Expected("hybrid", ("eager", "sdpa"), BOTH_DIRECTIONS),
    "lfm2": Expected("hybrid", ALL, BOTH_DIRECTIONS),
    "zamba2": Expected("hybrid", ALL, BOTH_DIRECTIONS),
    "bert": Expected("already bidirectional", ALL),
    "bart": Expected("encoder-decoder half", (), "", "its encoder already sees both ways"),
    "cpmant": Expected("attention", (), "", "padding changes a text's hidden states"),
    "modernbert-decoder": Expected("attention", ALL, "mask always made"),
}
PACKS_ALWAYS = ("llama", "qwen3", "gemma3_text", "gpt_oss", "llama4_text", "stablelm", "bert")
PADDED: dict[str, set[str]] = {**{name: set() for name in PACKS_ALWAYS}, "modernbert-decoder": {"eager"}}
"""Backends under which texts are not packed; all of them where a name is missing."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_representative_entry_comes_out_as_stated(name: str) -> None:
    expected, found = EXPECTED[name], measure(name)
    assert found.failures == ()
    assert found.category == expected.category
    assert tuple(answer.backend for answer in found.answers if answer.bidirectional) == expected.backends
    assert expected.refusal in found.answers[0].refusal
    assert bool(expected.refusal) == bool(found.answers[0].refusal)
    assert any(treatment.startswith(expected.treatment) for treatment in found.treatments) or not expected.treatment
    assert (found.checks is not None) == bool(expected.backends)
    packed = {answer.backend for answer in found.answers if answer.packed is not None}
    assert packed == set(expected.backends) - PADDED.get(name, set(expected.backends))
    assert all(answer.packed is not None or answer.unpacked for answer in found.answers if answer.bidirectional)


def test_the_number_of_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    measure("llama")
    assert torch.get_num_threads() == before


def test_a_drafter_has_no_model_of_its_own() -> None:
    found = measure("gemma4_assistant")
    assert found.category == "drafter"
    assert "hidden_size_per_layer_input must be 0" in found.reasons[0]
    assert not found.bidirectional
    assert found.failures == ()


def test_what_is_lost_at_a_load_is_a_silent_failure() -> None:
    calls: list[PreTrainedModel] = []

    def forgets(model: PreTrainedModel) -> Certificate:
        calls.append(model)
        return make_bidirectional(model) if len(calls) == 1 else probe(model)

    # The mask buffers of gpt_neo are not saved, so that only a second conversion opens them.
    (failure, *_) = measure("gpt_neo", forgets).failures
    assert failure.startswith("saving and loading: it changes the hidden states by")


def test_what_is_raised_by_no_name_is_a_silent_failure() -> None:
    def breaks(model: PreTrainedModel) -> Certificate:
        raise TypeError("not a tensor")

    found = measure("llama", breaks)
    assert found.failures == tuple(f"{backend}: TypeError: not a tensor" for backend in ALL)
    assert not found.bidirectional


CERTAIN = Checks("eager", saved=0.0, adapted=2e-7)
GOOD = Architecture(
    "llama",
    "LlamaModel",
    "attention",
    (Answer("eager", padding=3e-7, packed=5e-7), Answer("flex_attention", padding=3e-7, unpacked="it fails")),
    treatments=("is_causal=False",),
    checks=CERTAIN,
)
REFUSED = Architecture(
    "cpmant",
    "CpmAntModel",
    "attention",
    (
        Answer("eager", refusal='cpmant under attn_implementation="eager": padding | shows.'),
        Answer("sdpa", refusal='cpmant under attn_implementation="sdpa": padding | shows.'),
    ),
)
UNBUILT = Architecture("gemma3n", "Gemma3n", "cannot be built here", unbuilt="ImportError: timm is missing.")


@pytest.mark.parametrize(
    ("broken", "failure"),
    [
        (replace(GOOD, answers=(Answer("sdpa", padding=2e-5),)), "sdpa: padding changes the hidden states by 2.0e-05"),
        (
            replace(GOOD, answers=(Answer("sdpa", padding=float("nan")),)),
            "sdpa: padding changes the hidden states by nan",
        ),
        (
            replace(GOOD, answers=(Answer("sdpa", padding=0.0, packed=2e-5),)),
            "sdpa: packing changes the hidden states by 2.0e-05",
        ),
        (
            replace(GOOD, checks=replace(CERTAIN, saved=3e-6)),
            "saving and loading: it changes the hidden states by 3.0e-06",
        ),
        (
            replace(GOOD, checks=replace(CERTAIN, adapted=float("nan"))),
            "saving and loading an adapter: it changes the hidden states by nan",
        ),
        (replace(GOOD, checks=replace(CERTAIN, unreached=("layers.0",))), "gradients: no gradient reaches layers.0"),
        (
            replace(GOOD, checks=replace(CERTAIN, errors={"saved": "OSError: full"})),
            "saving and loading: OSError: full",
        ),
    ],
)
def test_a_failed_check_is_a_failure_unless_it_fails_before_conversion_too(broken: Architecture, failure: str) -> None:
    assert GOOD.failures == ()
    assert broken.failures == (failure,)
    if broken.checks != CERTAIN:
        inherited = replace(broken, baseline=broken.checks)
        assert inherited.failures == ()
        assert inherited.notes == (failure.replace(":", ", converted or not:", 1),)


def test_a_reason_that_all_backends_give_is_given_once() -> None:
    assert REFUSED.reasons == ("cpmant: padding | shows.",)
    mixed = replace(REFUSED, answers=(*REFUSED.answers, Answer("flex_attention", padding=1e-7)))
    assert mixed.reasons == ("eager, sdpa: cpmant: padding | shows.",)
    assert mixed.bidirectional


def test_the_page_counts_and_gives_every_reason() -> None:
    broken = replace(GOOD, name="opt", checks=replace(CERTAIN, saved=1.0))
    text = page([GOOD, REFUSED, UNBUILT, broken], ("eager", "sdpa"), {"transformers": "5.23.0"})
    first = "4 entries: 2 bidirectional, 1 refused, 1 not built here; silent failures: 1."
    assert text.startswith(f"# Architectures\n\n{first} Measured by `make architectures` with transformers 5.23.0.\n")
    packed = "5e-07, flex_attention: padded"
    assert (
        f"| llama | LlamaModel | attention | yes |  | is_causal=False | 3e-07 | {packed} | 0 | 2e-07 | yes |\n" in text
    )
    assert "| cpmant | CpmAntModel | attention | refused | refused |  |  |  |  |  |  |\n" in text
    assert "## Refused\n\n- **cpmant**: cpmant: padding \\| shows.\n" in text
    assert "## Not built here\n\n- **gemma3n**: ImportError: timm is missing.\n" in text
    assert "## Silent failures\n\n- **opt**: saving and loading: it changes the hidden states by 1.0e+00\n" in text
    assert "Not ours" not in text


def test_an_unknown_name_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r'"lama" is not in transformers.* Did you mean "llama"\?'):
        sweep(["lama"])
    with pytest.raises(ConfigError, match="workers=0: at least one process must measure"):
        sweep(["llama"], workers=0)


def test_processes_give_what_one_process_gives() -> None:
    names = ["gpt2", "llama"]
    found = sorted(sweep([*names, "llama"], workers=2), key=lambda one: one.name)
    alone = [measure(name) for name in names]
    assert [one.name for one in found] == names
    assert [one.answers for one in found] == [one.answers for one in alone]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


@pytest.mark.parametrize("broken", [False, True])
def test_the_verb_exits_with_1_for_a_silent_failure_and_0_for_a_refusal(
    broken: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretended(names: Sequence[str], workers: int | None) -> Iterator[Architecture]:
        checks = replace(CERTAIN, saved=0.5) if broken else CERTAIN
        yield from (replace(GOOD, name=names[0], checks=checks), replace(REFUSED, name=names[1]))

    monkeypatch.setattr(room, "sweep", pretended)
    assert call("architectures", "llama", "cpmant") == int(broken)
    shown = capsys.readouterr()
    assert "llama" in shown.out
    assert "cpmant: cpmant: padding | shows." in shown.err
    assert ("llama: SILENT FAILURE: saving and loading: it changes the hidden states by 5.0e-01" in shown.err) == broken
    assert call("architectures", "llama", "cpmant", "--markdown") == int(broken)
    assert capsys.readouterr().out.startswith("# Architectures\n")


def test_the_verb_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("architectures", "lama") == 1
    assert 'Did you mean "llama"?' in capsys.readouterr().err

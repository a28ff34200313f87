"""The command line. This file finds the verb and turns what happens into an exit code; the verbs import what they need.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from bothways.errors import BothwaysError, did_you_mean

VERBS = {
    "convert": ("making", "Make an untrained encoder of a decoder, and prove that every token sees every token."),
    "mntp": ("training", "Train on masked next token prediction."),
    "simcse": ("training", "Train on unlabelled texts, without supervision."),
    "supervised": ("training", "Train on queries and the documents that answer them."),
    "distil": ("training", "Train to give the vectors of a teacher."),
    "merge": ("merging", "Merge encoders of one origin into one."),
    "mine": ("mining", "Find hard negatives of queries in a corpus, to train on."),
    "plan": ("planning", "Say what a recipe will take, in memory, FLOPs and time, before it runs."),
    "run": ("making", "Run a recipe: all stages, resumable."),
    "ablate": (
        "ablating",
        "Vary a recipe (direction, pooling, stages, any setting) and print what each variant scores.",
    ),
    "evaluate": ("using", "Measure encoders on local tasks, tf-idf beside them."),
    "encode": ("encoding", "Write the vectors of a corpus as Parquet, resumable."),
    "index": ("searching", "Index a folder of vectors, so that a large one is searched quickly."),
    "search": ("searching", "Find the documents of an encoded corpus that are nearest to questions."),
    "export": ("exporting", "Write an encoder for another engine, and check that engine's vectors."),
    "verify": ("exporting", "Say whether an engine's vectors are an encoder's, or silently causal ones."),
    "show": ("showing", "Show what an encoder is and how it became so."),
    "architectures": ("surveying", "Measure which decoders of transformers become bidirectional."),
    "demo": ("making", "Train an encoder of this machine's documentation, offline, in minutes."),
}
"""Verb -> the module with its function, and what it does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit."""
    sys.exit(_main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(import_module("bothways").__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f'bothways: unknown command "{verb}". {did_you_mean(verb, VERBS)}', file=sys.stderr)
        return 2
    # Under a launcher each process speaks for itself: only the one that fails knows why.
    who = f"process {os.environ.get('RANK', '?')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    try:
        _run(verb, rest)
        if who:
            import_module("bothways.training.processes").end()
    except BothwaysError as problem:
        print(f"{who}{type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"{who}interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


def _run(verb: str, arguments: list[str]) -> None:
    import tyro

    # transformers' own bars and advice would stand between the lines that matter.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Corpora are tokenised on every core; what is forked later (a compiler, a launcher's workers) tokenises nothing.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    module, summary = VERBS[verb]
    function: Callable[..., None] = getattr(import_module(f"bothways.cli.{module}"), verb)
    config = (tyro.conf.FlagCreatePairsOff,)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        tyro.cli(function, prog=f"bothways {verb}", description=summary, args=arguments, config=config)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the place in the code that raised it."""
    print(f"warning: {message}", file=sys.stderr)


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: bothways COMMAND ...\n\nEvery decoder can look both ways: make a text encoder of a language model.\n\n"
        f"{verbs}\n\nbothways COMMAND --help shows the settings of a command; bothways --version the version."
    )

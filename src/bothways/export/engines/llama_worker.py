"""llama.cpp in a process of its own: reads questions, a line of JSON each, and answers so.

Imports nothing of bothways, because it may run in an environment that has llama_cpp alone.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Answers until its input ends."""
    # llama.cpp prints on both streams; the answers have one of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    llama_cpp = import_module("llama_cpp")
    model: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if question["do"] == "open":
                size = question["tokens"]
                # Attention that is not causal needs all of a text in one piece of work: n_ubatch tokens.
                model = llama_cpp.Llama(
                    question["file"],
                    embedding=True,
                    n_ctx=size,
                    n_batch=size,
                    n_ubatch=size,
                    n_gpu_layers=0,
                    verbose=False,
                )
                found: Any = None
            elif question["do"] == "tokens":
                found = [model.tokenize(text.encode("utf-8")) for text in question["texts"]]
            else:
                found = model.embed(question["texts"], truncate=False)
            answer: dict[str, Any] = {"found": found}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

"""Run by the Python that vLLM is installed in, which need not have what bothways needs.

A line of stdin is a JSON object with `folder`, `dtype` and `texts`, or without `texts` to open a folder alone; the line
of stdout that answers it has `max_length` and `vectors`, or `error`. One folder is open at a time.
"""

import json
import os
import sys
from typing import Any

# Of the machine's memory: vLLM's default is nearly all of it, kept for what a text encoder has no use for.
MEMORY = 0.4


def main() -> None:
    """Answers until stdin ends; a folder that vLLM refuses is answered with `error`."""
    # What vLLM and its libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    model: Any = None
    opened: dict[str, str] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        place = {"model": request["folder"], "dtype": request["dtype"]}
        try:
            if opened != place:
                model, opened = None, None
                cleanup_dist_env_and_memory()
                model = LLM(runner="pooling", enforce_eager=True, gpu_memory_utilization=MEMORY, **place)
                opened = place
            outputs = model.embed(request["texts"], use_tqdm=False) if request.get("texts") else []
            answer = {
                "max_length": model.llm_engine.model_config.max_model_len,
                "vectors": [output.outputs.embedding for output in outputs],
            }
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


# vLLM may start processes that import this file again.
if __name__ == "__main__":
    main()

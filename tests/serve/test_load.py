"""Property: what is computed together changes no vector, and many clients at once get theirs, without an error."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI
from serving import Forks, Server, metric, post, until

from bothways import Encoder, convert

CLIENTS, REQUESTS = 64, 4


def mixed(real_texts: list[str], seed: int) -> list[list[str]]:
    """Requests of one to nine texts of one to hundreds of characters."""
    draw = random.Random(seed)
    return [
        [text[: draw.choice((3, 20, 100, 400))] for text in draw.sample(real_texts, draw.choice((1, 1, 1, 2, 9)))]
        for _ in range(REQUESTS)
    ]


def test_64_clients_get_the_vectors_of_encode(server: Server, encoder: Encoder, real_texts: list[str]) -> None:
    asked = [mixed(real_texts, seed) for seed in range(CLIENTS)]
    texts = sorted({text for requests in asked for request in requests for text in request})
    expected = dict(zip(texts, encoder.encode(texts), strict=True))
    before = {name: metric(server, f"bothways_batch_texts_{name}") for name in ("count", "sum")}

    async def client(requests: list[list[str]]) -> float:
        worst = 0.0
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=120) as client:
            for request in requests:
                found = await client.embeddings.create(model="tiny", input=request)
                for text, item in zip(request, found.data, strict=True):
                    worst = max(worst, float(np.abs(np.array(item.embedding) - expected[text]).max()))
        return worst

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*map(client, asked))

    assert max(asyncio.run(all_of_them())) < 1e-5
    count, texts_done = (metric(server, f"bothways_batch_texts_{name}") - before[name] for name in ("count", "sum"))
    # Requests were computed together: there were more of them than batches.
    assert count < CLIENTS * REQUESTS
    assert texts_done / count > 1.5


def test_a_small_request_does_not_wait_for_all_of_a_large_one(server: Server, real_texts: list[str]) -> None:
    large = [f"{number} {text}" for number in range(7) for text in real_texts][:2000]

    async def both() -> tuple[float, float]:
        async with httpx.AsyncClient(timeout=120) as client:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            url = f"{server.url}/v1/embeddings"
            work = asyncio.create_task(client.post(url, json={"input": large, "encoding_format": "base64"}))
            waited = 0
            while not await asyncio.to_thread(metric, server, "bothways_waiting_texts"):
                waited += 1
                assert waited < 1000
            small = await client.post(url, json={"input": "a small one"})
            between = loop.time() - begun
            assert not work.done()
            assert small.status_code == (await work).status_code == 200
            return between, loop.time() - begun

    small, all_of_it = asyncio.run(both())
    assert small < 0.9 * all_of_it


def test_what_nobody_waits_for_is_not_computed(server: Server, real_texts: list[str]) -> None:
    large = [f"gone {number} {text}" for number in range(7) for text in real_texts][:2000]
    gone, texts = (metric(server, f"bothways_{name}") for name in ("cancelled_requests_total", "batch_texts_sum"))

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            work = asyncio.create_task(client.post(f"{server.url}/v1/embeddings", json={"input": large}))
            while not await asyncio.to_thread(metric, server, "bothways_waiting_texts"):
                pass
            work.cancel()
            await asyncio.wait({work})

    asyncio.run(leave())
    until(lambda: metric(server, "bothways_cancelled_requests_total") == gone + 1)
    until(lambda: metric(server, "bothways_waiting_texts") == 0)
    assert metric(server, "bothways_batch_texts_sum") - texts < len(large)
    assert metric(server, "bothways_requests_inside") == 0
    assert post(server, {"input": "still there"}).status_code == 200


@pytest.mark.parametrize("name", ["mamba", pytest.param("jamba", marks=pytest.mark.slow)])
def test_two_way_recurrence_is_served_as_it_is_encoded(
    name: str, forks: Forks, tiny_llama_folder: Path, tmp_path: Path, real_texts: list[str]
) -> None:
    """Families that no other engine serves right: their rows are padded, not packed."""
    from bidirectional_tiny import save

    save(name, tiny_llama_folder, tmp_path / "base")
    convert(tmp_path / "base", dtype="float32", device="cpu").save_pretrained(tmp_path / name)
    encoder = Encoder.from_pretrained(tmp_path / name, device="cpu")
    texts = [text[: 10 + 7 * place] for place, text in enumerate(real_texts[:23])]
    served = forks.start(tmp_path / name)
    answer = post(served, {"input": texts, "model": name})
    assert answer.status_code == 200, answer.text
    found = np.array([item["embedding"] for item in answer.json()["data"]])
    np.testing.assert_allclose(found, encoder.encode(texts), rtol=0, atol=1e-5)
    backwards = encoder.encode([" ".join(reversed(text.split())) for text in texts])
    assert np.abs(found - backwards).max() > 1e-3
    assert "padded rows of like length" in served.said
    served.end()

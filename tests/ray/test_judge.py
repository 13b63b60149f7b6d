"""A judge that vLLM's own OpenAI server serves: a tiny model that was taught one reply."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from pydantic import SecretStr

from sppo_ray.config import JudgeReward
from sppo_ray.errors import UserError
from sppo_ray.models import tiny
from sppo_ray.rewards.judge import JudgeScorer, require_judge
from sppo_ray.types import ScoreRequest

KEY = "the-key-of-the-judge-1"
REPLY = "Fine.\nVerdict: 7"
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
}

pytestmark = pytest.mark.slow  # the server takes a minute to start


def taught(directory: Path) -> Path:
    """A model of one layer that answers every question with REPLY."""
    tokenizer = tiny.byte_tokenizer()
    model = tiny.new_model(tiny.TINY_CRITIC_SHAPE, tokenizer, seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    reply = tokenizer(REPLY + tiny.EOS)["input_ids"]
    for _ in range(150):
        noise = torch.randint(40, 120, (16, 1 + int(torch.randint(60, (1,), generator=draw))), generator=draw)
        asked = torch.tensor(tokenizer("\nassistant: ")["input_ids"]).expand(16, -1)
        rows = torch.cat([noise, asked, torch.tensor(reply).expand(16, -1)], dim=1)
        logits = model(input_ids=rows[:, :-1], logits_to_keep=len(reply)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, -len(reply) :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = taught(tmp_path_factory.mktemp("judge"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={directory}"]
    command += ["--served-model-name=tiny", "--host=127.0.0.1", f"--port={port}", f"--api-key={KEY}"]
    command += ["--dtype=float32", "--enforce-eager", "--max-model-len=1024", "--kv-cache-memory-bytes=64M"]
    process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, "vLLM's server ended"
            assert time.monotonic() < deadline, "vLLM's server does not start"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_judge_on_vllm(server: str) -> None:
    judge = JudgeReward(url=server, model="tiny", rubric="{prompt}\n{response}", max_tokens=32)
    require_judge(judge, SecretStr(KEY))
    with pytest.raises(UserError, match="answers HTTP 401"):
        require_judge(judge, None)
    with pytest.raises(UserError, match="it does not serve other; it serves tiny"):
        require_judge(judge.model_copy(update={"model": "other"}), SecretStr(KEY))

    async def score() -> None:
        scorer = JudgeScorer(judge, SecretStr(KEY))
        short = JudgeScorer(judge.model_copy(update={"max_tokens": 4}), SecretStr(KEY))
        requests = [ScoreRequest(f"answer {n}", "", "", "question", {}) for n in range(4)]
        verdicts = await scorer.score_all(requests)
        assert [(one.reward, one.reason) for one in verdicts] == [(0.7, "judged")] * 4
        assert [one.parts for one in verdicts] == [{"score": 7.0}] * 4
        (cut,) = await short.score_all(requests[:1])
        assert cut.reason == "error: judge: its reply was cut off at max_tokens"
        (wrong,) = await JudgeScorer(judge, SecretStr("another key")).score_all(requests[:1])
        assert wrong.reason.startswith("error: judge: HTTP 401")

    asyncio.run(score())

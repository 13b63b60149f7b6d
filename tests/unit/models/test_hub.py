"""Models of the Hugging Face hub, against a FAKE hub over real HTTP (tests/hub_stand_in.py), with
the real huggingface_hub. Each part is a process of its own, because huggingface_hub reads its
variables when it is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo_ray.config import RewardSettings
from sppo_ray.config.loading import load_config
from sppo_ray.launch.run_inputs import commits_of, pin_models, pin_reward_models
from sppo_ray.models.hub import HubModel, hub_model
from sppo_ray.rundir.layout import RunDir
from tests.hub_stand_in import TOKEN, Hub, Repository, hub
from tests.training_data import save_llama
from tests.unit.ended_run import ended_run

REPOSITORY = Path(__file__).resolve().parents[3]
RESOLVE = """
import json, sys
from sppo_ray.errors import UserError
from sppo_ray.models.bundled import resolve_model
from sppo_ray.planning.shapes import find_shape
found = []
for model in sys.argv[1:]:
    said = []
    try:
        found.append([str(resolve_model(model, said.append)), said])
        find_shape(model)  # by its config.json in the cache
    except UserError as error:
        found.append([str(error), said])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    model = save_llama(tmp_path_factory.mktemp("model") / "llama")
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    more = {"pytorch_model.bin": b"pickle", "original/consolidated.safetensors": b"copy", "README.md": b"x"}
    repositories = {
        "org/tiny": Repository(files | more),
        "org/gated": Repository(files, gated=True),
        "org/pickled": Repository({"config.json": b"{}", "tokenizer.json": b"{}", "model.bin": b"pickle"}),
    }
    with hub(repositories) as state:
        yield state


def environment(served: Hub, home: Path, **more: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return known | {"HF_ENDPOINT": served.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | more


def resolved(env: dict[str, str], *models: str) -> list[tuple[str, list[str]]]:
    command = [sys.executable, "-c", RESOLVE, *models]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [(path, said) for path, said in json.loads(done.stdout)]


def test_a_model_is_fetched_once_and_then_taken_from_the_cache(served: Hub, tmp_path: Path) -> None:
    commit = served.repositories["org/tiny"].commit
    online = environment(served, tmp_path)
    (first, said), (second, nothing) = resolved(online, "org/tiny", f"org/tiny@{commit}")
    directory = Path(first)
    assert first == second and directory.name == commit and directory.is_relative_to(tmp_path)
    assert said[0].startswith("fetching model org/tiny from the hub (") and commit in said[1]
    assert nothing == []
    assert not {"pytorch_model.bin", "original", "README.md"} & {file.name for file in directory.iterdir()}
    fetched = [request for request in served.requests if request.startswith("GET /org/tiny/resolve/")]
    assert len(fetched) == len(set(fetched)) == len(list(directory.iterdir()))

    served.requests.clear()
    offline = environment(served, tmp_path, HF_HUB_OFFLINE="1")
    (again, silent), (other, _), (none, _) = resolved(offline, "org/tiny", "org/tiny@v2", "org/none")
    assert (again, silent, served.requests) == (first, [], [])
    for text in (other, none):
        assert "the hub cannot be asked (HF_HUB_OFFLINE is set): fetch it where there is a network" in text


def test_what_the_hub_refuses_is_one_message_with_the_remedy(served: Hub, tmp_path: Path) -> None:
    models = ("org/none", "org/gated", "org/tiny@v2", "org/pickled")
    texts = [text for text, _ in resolved(environment(served, tmp_path), *models)]
    for text, wanted in zip(
        texts,
        (
            "hub, and the hub shows no such repository: correct the name; if it is private, log in",
            "model org/gated: the repository is gated: ask for access on its page on the hub, then log in",
            "model org/tiny@v2: the repository has no such revision: name a branch, tag or commit",
            "has no *.safetensors file",
        ),
        strict=True,
    ):
        assert wanted in text and "Traceback" not in text
    with_token = environment(served, tmp_path, HF_TOKEN=TOKEN)
    assert Path(resolved(with_token, "org/gated")[0][0]).is_dir()


def test_without_a_network_the_message_says_so(served: Hub, tmp_path: Path) -> None:
    away = environment(served, tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    ((text, _),) = resolved(away, "org/tiny")
    assert "the hub cannot be asked (ConnectError" in text and "hf download" in text


def test_push_uploads_policy_and_critic_with_cards(served: Hub, tmp_path: Path) -> None:
    run = RunDir(ended_run(tmp_path))
    from sppo_ray.display.plots import learning_curve

    learning_curve(run.path)
    (run.exported_critic / "README.md").write_text("---\ntags: [sppo]\n---\n# Critic of quickstart\n")
    command = [sys.executable, "-m", "sppo_ray", "push", str(run.path), "me/sums", "--private"]
    env = environment(served, tmp_path / "home", HF_TOKEN=TOKEN)
    served.repositories["me/sums-critic"] = Repository({}, private=True)  # one that exists
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"policy: {served.address}/me/sums" in done.stdout
    policy, critic = served.repositories["me/sums"], served.repositories["me/sums-critic"]
    assert policy.private and critic.private
    for repository, directory in ((policy, run.exported_policy), (critic, run.exported_critic)):
        assert repository.files == {file.name: file.read_bytes() for file in directory.iterdir()}
    card = policy.files["README.md"].decode()
    for wanted in (
        "tags: [sppo-ray, reinforcement-learning, sppo]",
        "builtin:running-sum, trained with sppo",
        "![learning curve](curve.png)",
        "| 0 | running-sum | 16 | 1 | 0.25 | [0.15, 0.35] | 1: 0.25 | 40 |",
        "| 1 | running-sum | 16 | 1 | 0.50 | [0.40, 0.60] | 1: 0.50 | 40 |",
        "prompts_per_step: 4",
        "torch 2",
    ):
        assert wanted in card
    assert policy.files["curve.png"].startswith(b"\x89PNG")
    assert critic.files["README.md"].decode().count("## Made with") == 1
    assert str(tmp_path) not in card + critic.files["README.md"].decode()

    denied = subprocess.run(
        command, env=env | {"HF_TOKEN": "other"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert denied.returncode == 2 and "log in with `hf auth login`" in denied.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", HubModel("org/name", None)),
        ("Qwen/Qwen2.5-0.5B@main", HubModel("Qwen/Qwen2.5-0.5B", "main")),
        ("org/name@refs/pr/1", HubModel("org/name", "refs/pr/1")),
        *((text, None) for text in ("name", "./org/name", "/org/name", "~/name", "a/b/c")),
        *((text, None) for text in ("builtin:x", "../x", "org/name@", "")),
    ],
)
def test_what_names_a_model_of_the_hub(text: str, found: HubModel | None) -> None:
    assert hub_model(text) == found


def test_a_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert hub_model("org/name") is None


def test_a_resumed_run_takes_the_commit_of_its_first_start(tmp_path: Path) -> None:
    config = load_config("quickstart", ["--learner.model=org/a", "--critic.model=org/b@v1"])
    cached = [tmp_path / "snapshots" / commit for commit in ("1" * 40, "2" * 40)]
    commits = commits_of({"org/a": cached[0], "org/b@v1": cached[1], "builtin:x": tmp_path})
    assert commits == {"org/a": "1" * 40, "org/b@v1": "2" * 40}
    pinned = pin_models(config, commits)
    assert (pinned.learner.model, pinned.critic.model) == (f"org/a@{'1' * 40}", f"org/b@{'2' * 40}")
    assert pin_models(config, {}) == config


def test_reward_models_are_pinned_wherever_they_stand() -> None:
    model = {"type": "model", "model": "org/rm", "transform": {"type": "sigmoid", "scale": 2.0}}
    right = {"name": "right", "weight": 2.0, "function": {"type": "math"}}
    parts = [{"name": "good", "function": model}, right]
    given = RewardSettings.model_validate({"function": {"type": "sum", "parts": parts}, "deadline_s": 3.0})
    pinned = pin_reward_models(given, {"org/rm": "1" * 40})
    assert [one.model for one in pinned.models] == [f"org/rm@{'1' * 40}"]
    renamed = pinned.model_dump()
    renamed["function"]["parts"][0]["function"]["model"] = "org/rm"
    assert renamed == given.model_dump()
    assert pin_reward_models(given, {"org/other": "1" * 40}) is given


def test_no_actor_can_download() -> None:
    for file in (REPOSITORY / "actors").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"resolve_model|models\.hub|snapshot_download|hf_hub_download", text), file

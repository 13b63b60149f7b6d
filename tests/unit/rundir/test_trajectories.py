"""The trajectory log gives back exactly what was trained on, and never half a file."""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.errors import UserError
from sppo_ray.rundir import trajectories
from sppo_ray.rundir.trajectories import (
    SCHEMA,
    read_step,
    steps,
    to_minibatches,
    to_samples,
    to_table,
    write_step,
)
from sppo_ray.rundir.turns import RecordedTurn, turns_of
from sppo_ray.types import (
    Prompt,
    PromptHistory,
    PromptValue,
    RequestId,
    ScoredTrajectory,
    TrainingSample,
    Trajectory,
    Turns,
)

HISTORY = ("history_rate", "history_weight", "history_share")
TEXTS = ("turn_texts", "turn_role")
TURNS = ("turn_lengths", "turn_versions", "turn_rewards", "turn_reason", "turn_seconds", *TEXTS)


def make_sample(
    *,
    logprobs: tuple[float, ...] = (-0.1, -2.5),
    reward: float = 1.0,
    value: float = 0.25,
    version: int = 4,
    extra: Any = None,
) -> TrainingSample:
    prompt = Prompt("sum/3", "sum", "^a7b5=", (1, 5, 6), (9, 8), "12", extra or {})
    ids = tuple(range(len(logprobs)))
    trajectory = Trajectory(
        RequestId("7", 0, 0), "sum/3", ids, logprobs, "stop", version, version + 1, "rollout-1", 0.5
    )
    scored = ScoredTrajectory(prompt, trajectory, "12$", reward, "correct", 0.01, PromptValue(-1.1, value, 2))
    return TrainingSample(scored, reward - value, reward)


def float32(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]


def test_derived_columns() -> None:
    row = to_table(7, [make_sample(reward=0.0, value=0.25, version=4)], learner_version=6).to_pylist()[0]
    assert row["step"] == 7
    assert row["staleness"] == 2  # 6 - 4
    assert row["surprise"] == 0.25  # |0 - 0.25|
    assert row["advantage"] == -0.25
    assert (row["prompt_ids"], row["critic_prompt_ids"]) == ([1, 5, 6], [9, 8])
    assert (row["finish_reason"], row["policy_version"], row["policy_version_end"]) == ("stop", 4, 5)


def test_every_column_is_filled_and_no_field_may_be_missing() -> None:
    table = to_table(1, [make_sample()], 4)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    # only ReMax has a greedy response, only spo and sppo can have a tracker, only an environment
    # has turns
    without = {"baseline_reward", "baseline_tokens", *HISTORY, *TURNS}
    assert {name for name in table.column_names if table[name].null_count} == without
    # A critic, a greedy response and a tracker are what an algorithm may do without.
    critic = {"value_logit", "value", "critic_version", "surprise"}
    assert {field.name for field in SCHEMA if field.nullable} == without | critic | {"minibatch"}


@given(
    logprobs=st.lists(st.floats(allow_nan=False), max_size=20),
    reward=st.floats(0, 1),
    value=st.floats(0, 1),
    text=st.text(st.characters(codec="utf-8")),
)
@settings(max_examples=50, deadline=None)
def test_a_written_step_reads_back_bit_for_bit(
    tmp_path_factory: Any, logprobs: list[float], reward: float, value: float, text: str
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    extra = {"note": text, "n": [1, None]}
    samples = [make_sample(logprobs=tuple(logprobs), reward=reward, value=value, extra=extra), make_sample()]
    path = write_step(run_dir, to_table(123, samples, 5))
    assert path == run_dir / "trajectories" / "step-000123.parquet"
    assert read_step(run_dir, 123).equals(to_table(123, samples, 5))
    assert to_samples(read_step(run_dir, 123)) == samples


def test_numbers_of_tokens_come_back_as_arrays_of_the_same_bits() -> None:
    tokens = np.array([0.1, -1e-300, 1 / 3]), np.array([0.1, 0.2, 0.7]), np.array([1.0, 1.0, 0.9])
    one = make_sample(logprobs=(-0.1, -0.2, -0.3))
    samples = [TrainingSample(one.scored, tokens[0], 1.0, tokens[1], tokens[2]), make_sample()]
    table = to_table(1, samples, 4)
    assert table["advantage"].to_pylist() == [statistics.fmean(tokens[0].tolist()), 0.75]
    found = to_samples(table)
    assert found == samples and isinstance(found[1].advantage, float)
    for sample, lengths in zip(found, ((3, 3, 3), (2, 0, 0)), strict=True):
        arrays = (sample.token_advantages, sample.token_values, sample.returns)
        assert [(len(array), array.dtype) for array in arrays] == [(n, np.float64) for n in lengths]
    assert found[0] != found[1] and replace(samples[0], advantage=0.5) != samples[0]
    assert to_samples(to_table(1, [], 4)) == []


def test_minibatches_come_back_as_they_were(tmp_path: Path) -> None:
    samples = [make_sample(value=index / 8) for index in range(5)]
    write_step(tmp_path, to_table(1, samples, 4, sizes=[2, 3]))
    assert read_step(tmp_path, 1)["minibatch"].to_pylist() == [0, 0, 1, 1, 1]
    assert to_minibatches(read_step(tmp_path, 1)) == [samples[:2], samples[2:]]
    with pytest.raises(ValueError, match="expected length 5 but got length 4"):
        to_table(1, samples, 4, sizes=[2, 2])


def test_the_history_of_a_prompt_comes_back(tmp_path: Path) -> None:
    scored = replace(make_sample().scored, history=PromptHistory(1 / 3, 2.625, 0.1))
    samples = [replace(make_sample(), scored=scored), make_sample()]
    write_step(tmp_path, to_table(1, samples, 4))
    assert to_samples(read_step(tmp_path, 1)) == samples


def test_a_file_of_schema_3_is_read_without_histories(tmp_path: Path) -> None:
    table = to_table(1, [make_sample()], 4)
    path = write_step(tmp_path, table)
    older = table.drop_columns([*HISTORY, *TURNS])
    pq.write_table(older.replace_schema_metadata({"sppo_ray.trajectory_schema": "3"}), path)
    assert read_step(tmp_path, 1).schema.equals(SCHEMA, check_metadata=True)
    assert to_minibatches(read_step(tmp_path, 1)) == [[make_sample()]]
    assert read_step(tmp_path, 1, columns=["reward", "history_rate"]).to_pydict() == {
        "reward": [1.0],
        "history_rate": [None],
    }


def test_a_file_of_schema_2_is_read_without_its_minibatches(tmp_path: Path) -> None:
    samples = [make_sample(), make_sample(reward=0.0)]
    path = write_step(tmp_path, to_table(1, samples, 4))
    older = (
        to_table(1, samples, 4)
        .drop_columns(["minibatch", *HISTORY, *TURNS])
        .replace_schema_metadata({"sppo_ray.trajectory_schema": "2"})
    )
    pq.write_table(older, path)
    assert read_step(tmp_path, 1).schema.equals(SCHEMA, check_metadata=True)
    assert to_samples(read_step(tmp_path, 1)) == samples
    assert read_step(tmp_path, 1, columns=["reward"])["reward"].to_pylist() == [1.0, 0.0]
    with pytest.raises(UserError, match="recorded by an older release"):
        to_minibatches(read_step(tmp_path, 1))


def test_a_file_from_before_environments_is_read_without_turns(tmp_path: Path) -> None:
    samples = [make_sample(), make_sample(reward=0.0)]
    path = write_step(tmp_path, to_table(1, samples, 4))
    table = to_table(1, samples, 4)
    older = table.drop_columns(list(TURNS))
    pq.write_table(older.replace_schema_metadata({"sppo_ray.trajectory_schema": "4"}), path)
    assert read_step(tmp_path, 1).schema.equals(SCHEMA, check_metadata=True)
    assert to_minibatches(read_step(tmp_path, 1)) == [samples]


def episode() -> TrainingSample:
    turns = Turns(
        np.array([[1, 2], [1, 0]], np.int32),
        np.array([[4, 4], [4, 5]], np.int64),
        np.array([0.0, 1.0]),
        "found",
        0.5,
        ("8", "+", "12"),
        "tool",
    )
    sample = make_sample()
    trajectory = replace(sample.scored.trajectory, response_ids=[1, 2, 3, 4], turns=turns)
    return replace(sample, scored=replace(sample.scored, trajectory=trajectory))


def test_the_turns_of_an_episode_come_back(tmp_path: Path) -> None:
    samples = [episode(), make_sample()]
    write_step(tmp_path, to_table(1, samples, 4))
    assert to_samples(read_step(tmp_path, 1)) == samples
    first, second = read_step(tmp_path, 1).to_pylist()
    assert turns_of(first) == [
        RecordedTurn(True, "8", 1, 0.0),
        RecordedTurn(False, "+", 2, None),
        RecordedTurn(True, "12", 1, 1.0),
    ]
    assert turns_of(second) == []


def test_a_file_of_schema_5_is_read_without_the_texts_of_turns(tmp_path: Path) -> None:
    path = write_step(tmp_path, to_table(1, [episode()], 4))
    older = to_table(1, [episode()], 4).drop_columns(list(TEXTS))
    pq.write_table(older.replace_schema_metadata({"sppo_ray.trajectory_schema": "5"}), path)
    assert read_step(tmp_path, 1).schema.equals(SCHEMA, check_metadata=True)
    (found,) = to_samples(read_step(tmp_path, 1))
    assert found.scored.trajectory.turns is not None and found.scored.trajectory.turns.texts == ()
    assert turns_of(read_step(tmp_path, 1).to_pylist()[0]) == []


def test_a_table_crosses_the_wire_as_arrow() -> None:
    table = to_table(1, [make_sample()], 4)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert to_samples(pa.ipc.open_stream(sink.getvalue()).read_all()) == [make_sample()]


def test_float64_costs_no_more_than_float32_for_an_engines_logprobs(tmp_path: Path) -> None:
    # The lower 29 bits of the mantissa of a float32 in float64 are zero: 4 of its 8 byte planes
    # carry information.
    logprobs = tuple(float32(-((i * 2654435761) % 1000003) / 1e5) for i in range(20_000))
    path = write_step(tmp_path, to_table(1, [make_sample(logprobs=logprobs)], 4))
    group = pq.ParquetFile(path).metadata.row_group(0)
    column = next(
        c
        for c in map(group.column, range(group.num_columns))
        if c.path_in_schema == "response_logprobs.list.element"
    )
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.total_compressed_size < 1.05 * 4 * len(logprobs)


def test_steps_lists_what_is_there_in_order(tmp_path: Path) -> None:
    assert steps(tmp_path) == []
    for step in (10, 2, 1_234_567):
        write_step(tmp_path, to_table(step, [make_sample()], 4))
    (tmp_path / "trajectories" / "step-000003.partial").touch()
    assert steps(tmp_path) == [2, 10, 1_234_567]


def test_a_step_that_is_taken_again_replaces_its_file(tmp_path: Path) -> None:
    write_step(tmp_path, to_table(1, [make_sample(reward=0.0)], 4))
    write_step(tmp_path, to_table(1, [make_sample(reward=1.0)], 4))
    assert read_step(tmp_path, 1)["reward"].to_pylist() == [1.0]
    assert os.listdir(tmp_path / "trajectories") == ["step-000001.parquet"]


def test_missing_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trajectories of step 5; the run recorded none"):
        read_step(tmp_path, 5)
    path = write_step(tmp_path, to_table(3, [make_sample()], 4))
    with pytest.raises(UserError, match="no trajectories of step 5; recorded are 3 to 3"):
        read_step(tmp_path, 5)
    pq.write_table(
        to_table(3, [make_sample()], 4).replace_schema_metadata({"sppo_ray.trajectory_schema": "9"}), path
    )
    with pytest.raises(UserError, match="has trajectory schema 9, not 6"):
        read_step(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="step-000003.parquet: cannot be read"):
        read_step(tmp_path, 3)


def test_a_refused_write_leaves_the_earlier_file_and_no_other(tmp_path: Path) -> None:
    write_step(tmp_path, to_table(1, [make_sample(reward=0.0)], 4))
    (tmp_path / "trajectories" / "step-000002.parquet").mkdir()  # cannot be replaced by a file
    with pytest.raises(
        UserError, match="step-000002.parquet: cannot be written .* set logging.trajectories=false"
    ):
        write_step(tmp_path, to_table(2, [make_sample()], 4))
    assert sorted(os.listdir(tmp_path / "trajectories")) == ["step-000001.parquet", "step-000002.parquet"]
    assert read_step(tmp_path, 1)["reward"].to_pylist() == [0.0]


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    limited = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.rundir.test_trajectories import make_sample\n"
        "from sppo_ray.rundir.trajectories import to_table, write_step\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_step(Path(sys.argv[1]), to_table(1, [make_sample()], 4))\n"
    )
    ended = subprocess.run([sys.executable, "-c", limited, str(tmp_path)], capture_output=True, text=True)
    assert "step-000001.parquet: cannot be written (File too large)" in ended.stderr
    assert os.listdir(tmp_path / "trajectories") == []


def test_schema_version_is_in_the_metadata() -> None:
    assert SCHEMA.metadata == {b"sppo_ray.trajectory_schema": str(trajectories.SCHEMA_VERSION).encode()}

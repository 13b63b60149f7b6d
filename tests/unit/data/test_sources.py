"""Each source type on real files, and the errors of invalid files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_ray.config import (
    HFDiskData,
    JsonlData,
    ParquetData,
    ReasoningGymData,
    RegisterMachineData,
    RunningSumData,
)
from sppo_ray.data.sources import Concatenation, Source, open_sources
from sppo_ray.environments import register_machine
from sppo_ray.environments.running_sum import generate_example
from sppo_ray.errors import UserError

USER = {"role": "user", "content": "é?"}


def field_row(question: str, truth: str | None, *, source: str = "math", index: int = 0) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"content": question, "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": index, "split": "train"},
    }


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> str:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return str(path)


def write_lines(path: Path, *rows: Any) -> str:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def open_one(settings: Any) -> Source:
    return open_sources([settings])[0]


def refusal(settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_one(settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestParquet:
    def test_reads_the_fields_format(self, tmp_path: Path) -> None:
        rows = [field_row("1+1?", "2"), field_row("2+2?", "4", source="other", index=7)]
        path = write_parquet(tmp_path / "train.parquet", rows)
        source = open_one(ParquetData(path=path))
        assert len(source) == 2
        assert not source.procedural
        example = source[1]
        assert (example.id, example.source, example.ground_truth) == ("train/1", "other", "4")
        assert example.messages == ({"role": "user", "content": "2+2?"},)
        assert example.extra == {"index": 7, "split": "train"}

    def test_name_overrides_data_source_and_prefixes_ids(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "train.parquet", [field_row("1+1?", "2")])
        example = open_one(ParquetData(path=path, name="mine"))[0]
        assert (example.id, example.source) == ("mine/0", "mine")

    def test_a_plain_string_is_a_user_message(self, tmp_path: Path) -> None:
        path = write_parquet(
            tmp_path / "plain.parquet", [{"prompt": "1+1?", "reward_model": {"ground_truth": "2"}}]
        )
        example = open_one(ParquetData(path=path))[0]
        assert example.messages == ({"role": "user", "content": "1+1?"},)
        assert (example.source, example.extra) == ("plain", {})

    def test_messages_keep_their_order_and_roles(self, tmp_path: Path) -> None:
        spoken = [("system", "S"), ("user", "a"), ("assistant", "b")]
        row = {
            **field_row("Hi", "2"),
            "prompt": [{"content": content, "role": role} for role, content in spoken],
        }
        example = open_one(ParquetData(path=write_parquet(tmp_path / "a.parquet", [row])))[0]
        assert [(m["role"], m["content"]) for m in example.messages] == spoken

    @pytest.mark.parametrize("suffix", ["", "/*.parquet"])
    def test_a_directory_or_glob_counts_rows_through_its_files_in_name_order(
        self, tmp_path: Path, suffix: str
    ) -> None:
        write_parquet(tmp_path / "b.parquet", [field_row("third", "3")])
        write_parquet(tmp_path / "a.parquet", [field_row("first", "1"), field_row("second", "2")])
        (tmp_path / "notes.txt").write_text("not data")
        source = open_one(ParquetData(path=f"{tmp_path}{suffix}", name="all"))
        assert [(e.id, e.messages[0]["content"]) for e in source] == [
            ("all/0", "first"),
            ("all/1", "second"),
            ("all/2", "third"),
        ]

    def test_an_integer_truth_becomes_text(self, tmp_path: Path) -> None:
        path = write_parquet(
            tmp_path / "a.parquet", [{"prompt": "1+1?", "reward_model": {"ground_truth": 2}}]
        )
        assert open_one(ParquetData(path=path))[0].ground_truth == "2"

    def test_categories_as_pandas_writes_them(self, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([field_row("1", "1"), field_row("2", "2", source="other")])
        category = table["data_source"].dictionary_encode()
        pq.write_table(table.set_column(0, "data_source", category), tmp_path / "a.parquet")
        assert [e.source for e in open_one(ParquetData(path=str(tmp_path / "a.parquet")))] == [
            "math",
            "other",
        ]

    def test_other_columns_are_named(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", [{"problem": "1+1?", "answer": "2"}])
        assert "name it in the source's prompt_key and ground_truth_key" in refusal(ParquetData(path=path))
        [example] = open_one(ParquetData(path=path, prompt_key="problem", ground_truth_key="answer"))
        assert (example.messages[0]["content"], example.ground_truth) == ("1+1?", "2")

    def test_extra_columns_join_the_fields_of_extra_info(self, tmp_path: Path) -> None:
        row = {"prompt": "1+1?", "answer": "2", "level": 3, "tags": ["a"]}
        rows = [row | {"extra_info": {"level": 4, "k": "v"}}, row | {"extra_info": None}]
        path = write_parquet(tmp_path / "a.parquet", rows)
        keys = {"path": path, "ground_truth_key": "answer"}
        first, second = open_one(ParquetData(extra_columns=("level", "tags", "answer"), **keys))
        assert first.extra == {"level": 4, "tags": ["a"], "answer": "2", "k": "v"}
        assert second.extra == {"level": None, "tags": ["a"], "answer": "2", "k": None}
        assert open_one(ParquetData(**keys))[0].extra == {"level": 4, "k": "v"}
        said = refusal(ParquetData(extra_columns=("levle",), **keys))
        assert "no column 'levle' (the nearest is 'level'): correct the source's extra_columns" in said

    def test_extra_columns_without_extra_info(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", [{"prompt": "1+1?", "answer": "2", "level": 3}])
        source = open_one(ParquetData(path=path, ground_truth_key="answer", extra_columns=("level",)))
        assert source[0].extra == {"level": 3}

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
    def test_every_kind_of_text(self, tmp_path: Path, kind: pa.DataType) -> None:
        table = pa.table({"prompt": pa.array(["1+1?", "1+2?"]), "answer": pa.array(["2", "3"])})
        table = table.cast(pa.schema([("prompt", kind), ("answer", kind)]))
        pq.write_table(table, tmp_path / "a.parquet")
        source = open_one(ParquetData(path=str(tmp_path / "a.parquet"), ground_truth_key="answer"))
        assert [(e.messages[0]["content"], e.ground_truth) for e in source] == [("1+1?", "2"), ("1+2?", "3")]

    @pytest.mark.parametrize("twice", ["prompt", "reward_model", "data_source", "extra_info"])
    def test_a_column_that_occurs_twice(self, tmp_path: Path, twice: str) -> None:
        table = pa.Table.from_pylist([field_row("1", "1")])
        pq.write_table(table.append_column(twice, table[twice]), tmp_path / "a.parquet")
        path = str(tmp_path / "a.parquet")
        assert refusal(ParquetData(path=path)).startswith(f"{path}: the column {twice!r} occurs 2 times")

    def test_files_with_different_extra_info_go_together(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", [field_row("1", "1")])
        write_parquet(tmp_path / "b.parquet", [{**field_row("2", "2"), "extra_info": {"level": "hard"}}])
        source = open_one(ParquetData(path=str(tmp_path)))
        assert [e.extra for e in source] == [{"index": 0, "split": "train"}, {"level": "hard"}]

    def test_rows_of_many_row_groups(self, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([field_row(f"q{i}", str(i)) for i in range(100)])
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
        source = open_one(ParquetData(path=str(tmp_path / "a.parquet")))
        assert [e.ground_truth for e in source.examples([99, 0, 50, 50])] == ["99", "0", "50", "50"]


class TestBadParquet:
    def test_missing_file(self, tmp_path: Path) -> None:
        message = refusal(ParquetData(path=str(tmp_path / "nowhere.parquet")))
        assert message.startswith(f"data.train[0].path: {tmp_path}/nowhere.parquet: no such file")

    def test_glob_without_match(self, tmp_path: Path) -> None:
        assert "no file matches" in refusal(ParquetData(path=str(tmp_path / "*.parquet")))

    def test_directory_without_files(self, tmp_path: Path) -> None:
        assert "has no *.parquet file" in refusal(ParquetData(path=str(tmp_path)))

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").touch()
        assert refusal(ParquetData(path=str(tmp_path / "a.parquet"))).startswith(
            f"{tmp_path}/a.parquet: is empty"
        )

    def test_no_rows(self, tmp_path: Path) -> None:
        schema = pa.Table.from_pylist([field_row("a", "b")]).schema
        assert "has no rows" in refusal(ParquetData(path=write_parquet(tmp_path / "a.parquet", [], schema)))

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_text("prompt,answer\n1,2\n")
        assert "cannot be read as Parquet" in refusal(ParquetData(path=str(tmp_path / "a.parquet")))

    def test_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        write_parquet(path, [field_row(f"q{i}", str(i)) for i in range(100)])
        path.write_bytes(path.read_bytes()[:-40])
        assert "cannot be read as Parquet" in refusal(ParquetData(path=str(path)))

    def test_missing_column_names_the_nearest(self, tmp_path: Path) -> None:
        row = field_row("a", "b")
        row["prompts"] = row.pop("prompt")
        message = refusal(ParquetData(path=write_parquet(tmp_path / "a.parquet", [row])))
        assert "no column 'prompt' (the nearest is 'prompts')" in message

    def test_missing_inner_field_names_the_nearest(self, tmp_path: Path) -> None:
        row = {**field_row("a", "b"), "reward_model": {"ground_thruth": "b"}}
        message = refusal(ParquetData(path=write_parquet(tmp_path / "a.parquet", [row])))
        assert "no field 'reward_model.ground_truth' (the nearest is 'ground_thruth'" in message

    @pytest.mark.parametrize("truth", [None, "", "  \n"])
    def test_rows_without_ground_truth(self, tmp_path: Path, truth: str | None) -> None:
        rows = [field_row("a", "1"), field_row("b", truth), field_row("c", "3"), field_row("d", truth)]
        message = refusal(ParquetData(path=write_parquet(tmp_path / "a.parquet", rows)))
        assert message.startswith(
            f"{tmp_path}/a.parquet: row 1 (and 1 more): reward_model.ground_truth is missing"
        )

    def test_row_without_reward_model(self, tmp_path: Path) -> None:
        rows = [field_row("a", "1"), {**field_row("b", "1"), "reward_model": None}]
        path = write_parquet(tmp_path / "a.parquet", rows)
        assert "row 1: reward_model.ground_truth is missing" in refusal(ParquetData(path=path))

    @pytest.mark.parametrize("prompt", [None, [], [{"role": "user", "content": " "}]])
    def test_empty_prompt(self, tmp_path: Path, prompt: Any) -> None:
        rows = [field_row("a", "1"), field_row("b", "1"), {**field_row("c", "1"), "prompt": prompt}]
        assert "row 2: prompt is empty" in refusal(
            ParquetData(path=write_parquet(tmp_path / "a.parquet", rows))
        )

    @pytest.mark.parametrize("prompt", [None, "", " "])
    def test_empty_plain_prompt(self, tmp_path: Path, prompt: str | None) -> None:
        rows = [{**field_row("a", "1"), "prompt": "a"}, {**field_row("b", "1"), "prompt": prompt}]
        assert "row 1: prompt is empty" in refusal(
            ParquetData(path=write_parquet(tmp_path / "a.parquet", rows))
        )

    def test_null_content(self, tmp_path: Path) -> None:
        rows = [field_row("a", "1"), {**field_row("c", "1"), "prompt": [{"role": "user", "content": None}]}]
        assert "row 1: prompt.content is missing" in refusal(
            ParquetData(path=write_parquet(tmp_path / "a.parquet", rows))
        )

    def test_unknown_role(self, tmp_path: Path) -> None:
        rows = [field_row("a", "1"), {**field_row("c", "1"), "prompt": [{"role": "human", "content": "hi"}]}]
        assert "row 1: prompt.role is none of system," in refusal(
            ParquetData(path=write_parquet(tmp_path / "a.parquet", rows))
        )

    def test_the_bad_row_of_a_later_row_group_keeps_its_number(self, tmp_path: Path) -> None:
        rows = [field_row(f"q{i}", "1") for i in range(50)]
        rows[33]["prompt"] = []
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10)
        assert "row 33: prompt is empty" in refusal(ParquetData(path=str(tmp_path / "a.parquet")))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"prompt": 5}, "prompt is int64"),
            ({"prompt": ["a"]}, "prompt is list"),
            ({"reward_model": {"ground_truth": [1.0]}}, "reward_model.ground_truth is list"),
            ({"reward_model": {"ground_truth": 0.5}}, "reward_model.ground_truth is double"),
            ({"data_source": 3}, "data_source is int64"),
            ({"extra_info": "text"}, "extra_info is string"),
        ],
    )
    def test_wrong_types(self, tmp_path: Path, change: dict[str, Any], said: str) -> None:
        path = write_parquet(tmp_path / "a.parquet", [{**field_row("a", "1"), **change}])
        message = refusal(ParquetData(path=path))
        assert message.startswith(f"{path}: {said}")
        assert "must be" in message


class TestJsonLines:
    def test_strings_messages_numbers_and_blank_lines(self, tmp_path: Path) -> None:
        path = write_lines(
            tmp_path / "a.jsonl",
            {"prompt": "1+1?", "ground_truth": 2},
            "",
            {
                "prompt": [USER],
                "ground_truth": "2024-01-01",
                "extra_info": {"k": [1, None]},
                "data_source": "d",
            },
        )
        first, second = open_one(JsonlData(path=path))
        assert (first.id, first.source, first.ground_truth, first.extra) == ("a/0", "a", "2", {})
        assert (second.id, second.source, second.ground_truth, second.extra) == (
            "a/1",
            "d",
            "2024-01-01",
            {"k": [1, None]},
        )
        assert second.messages == (USER,)

    def test_all_other_fields_are_for_the_reward(self, tmp_path: Path) -> None:
        row = {"question": "q", "label": {"answer": "7"}, "level": 3, "notes": ["a"], "data_source": "d"}
        path = write_lines(
            tmp_path / "a.jsonl", row, {**row, "extra_info": {"level": 4, "k": None}}, {**row, "notes": None}
        )
        settings = JsonlData(path=path, prompt_key="question", ground_truth_key="label.answer")
        assert [one.extra for one in open_one(settings)] == [
            {"level": 3, "notes": ["a"]},
            {"level": 4, "notes": ["a"], "k": None},
            {"level": 3, "notes": None},
        ]

    def test_other_keys_and_a_path_into_objects(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", {"question": "q", "label": {"answer": "7"}})
        settings = JsonlData(path=path, prompt_key="question", ground_truth_key="label.answer")
        assert open_one(settings)[0].ground_truth == "7"

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", '\ufeff{"prompt": "a", "ground_truth": "1"}')
        assert open_one(JsonlData(path=path))[0].ground_truth == "1"

    def test_more_rows_than_a_block(self, tmp_path: Path) -> None:
        path = write_lines(
            tmp_path / "a.jsonl", *({"prompt": f"q{i}", "ground_truth": i} for i in range(9000))
        )
        source = open_one(JsonlData(path=path))
        assert len(source) == 9000
        assert source[8999].ground_truth == "8999"

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "line 3: not JSON"),
            ("[1]", "line 3: is a list"),
            ({"prompt": "a"}, "line 3: no ground_truth (there are: prompt)"),
            ({"prompt": "a", "ground_truth": None}, "line 3: ground_truth is missing"),
            ({"prompt": "a", "ground_truth": " "}, "line 3: ground_truth is missing"),
            ({"prompt": "a", "ground_truth": 0.5}, "line 3: ground_truth is a number"),
            ({"prompt": "a", "ground_truth": True}, "line 3: ground_truth is true or false"),
            ({"prompt": "", "ground_truth": "1"}, "line 3: prompt is empty"),
            ({"prompt": [], "ground_truth": "1"}, "line 3: prompt is empty"),
            ({"prompt": None, "ground_truth": "1"}, "line 3: prompt is null"),
            ({"prompt": [{"role": "user"}], "ground_truth": "1"}, "line 3: prompt is a list"),
            (
                {"prompt": [{"role": "robot", "content": "a"}], "ground_truth": "1"},
                "line 3: prompt.role is none of",
            ),
            ({"prompt": "a", "ground_truth": "1", "extra_info": []}, "line 3: extra_info is a list"),
            ({"prompt": "a", "ground_truth": "1", "data_source": 1}, "line 3: data_source is a number"),
            ('{"prompt": "\\ud800", "ground_truth": "1"}', "line 3: not JSON"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path: Path, line: Any, said: str) -> None:
        path = write_lines(tmp_path / "a.jsonl", {"prompt": "a", "ground_truth": "1"}, "", line)
        assert refusal(JsonlData(path=path)).startswith(f"{path}: {said}")

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff", "ground_truth": "1"}\n')
        assert "line 1: not UTF-8" in refusal(JsonlData(path=str(tmp_path / "a.jsonl")))

    def test_parquet_is_recognised(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        write_parquet(path, [field_row("1+1?", "2")])
        assert f"{path}: is a Parquet file" in refusal(JsonlData(path=str(path)))

    def test_an_array_of_objects(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a", "ground_truth": 1}, {"prompt": "b", "ground_truth": "2"}]
        for text in (json.dumps(rows), json.dumps(rows, indent=2), "\ufeff[\n" + json.dumps(rows)[1:]):
            (tmp_path / "a.json").write_text(text, encoding="utf-8")
            source = open_one(JsonlData(path=str(tmp_path / "a.json")))
            assert [example.ground_truth for example in source] == ["1", "2"]
        path = tmp_path / "a.json"
        path.write_text(json.dumps([*rows, {"prompt": "c"}]))
        assert refusal(JsonlData(path=str(path))).startswith(f"{path}: entry 3: no ground_truth")
        path.write_text(json.dumps(rows)[:-1])
        assert refusal(JsonlData(path=str(path))).startswith(f"{path}: not JSON")

    def test_only_blank_lines(self, tmp_path: Path) -> None:
        assert "has no rows" in refusal(JsonlData(path=write_lines(tmp_path / "a.jsonl", "", "")))


class TestHuggingFaceOnDisk:
    ROWS = [{"prompt": [USER], "ground_truth": str(i), "extra_info": {"level": i}} for i in range(4)]

    def test_dataset(self, tmp_path: Path) -> None:
        datasets.Dataset.from_list(self.ROWS).save_to_disk(str(tmp_path / "set"))
        source = open_one(HFDiskData(path=str(tmp_path / "set")))
        assert [(e.id, e.ground_truth, e.extra) for e in source][3] == ("set/3", "3", {"level": 3})

    def test_a_shuffled_selection_keeps_its_order(self, tmp_path: Path) -> None:
        datasets.Dataset.from_list(self.ROWS).select([3, 1]).save_to_disk(str(tmp_path / "set"))
        assert [e.ground_truth for e in open_one(HFDiskData(path=str(tmp_path / "set")))] == ["3", "1"]

    def test_split_and_keys(self, tmp_path: Path) -> None:
        rows = datasets.Dataset.from_list([{"question": "q", "answer": 5}])
        datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "set"))
        settings = HFDiskData(
            path=str(tmp_path / "set"), split="test", prompt_key="question", ground_truth_key="answer"
        )
        assert open_one(settings)[0].ground_truth == "5"
        assert "has the splits train, test" in refusal(settings.model_copy(update={"split": None}))
        assert "(given: dev)" in refusal(settings.model_copy(update={"split": "dev"}))

    def test_bad_sets(self, tmp_path: Path) -> None:
        assert "no such directory" in refusal(HFDiskData(path=str(tmp_path / "none")))
        (tmp_path / "dir").mkdir()
        assert "not a dataset written by save_to_disk" in refusal(HFDiskData(path=str(tmp_path / "dir")))
        datasets.Dataset.from_list([{"prompt": "q", "truth": "1"}]).save_to_disk(str(tmp_path / "set"))
        assert "no column 'ground_truth' (the nearest is 'truth')" in refusal(
            HFDiskData(path=str(tmp_path / "set"))
        )
        assert "has no splits" in refusal(HFDiskData(path=str(tmp_path / "set"), split="train"))
        rows = [{"prompt": "q", "ground_truth": "1"}, {"prompt": "r", "ground_truth": ""}]
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "b"))
        assert "row 1: ground_truth is missing" in refusal(HFDiskData(path=str(tmp_path / "b")))


class TestProcedural:
    def test_running_sum_is_the_task_of_the_package(self) -> None:
        source = open_one(RunningSumData(seed=3, size=1_000_000_000, max_operands=5))
        text, truth = generate_example(999_999_999, seed=3, max_operands=5)
        example = source[999_999_999]
        assert (example.id, example.source, example.ground_truth) == (
            "running-sum/999999999",
            "running-sum",
            truth,
        )
        assert example.messages == ({"role": "user", "content": text},)
        assert source.procedural
        with pytest.raises(IndexError):
            source[1_000_000_000]

    def test_register_machine_is_the_task_of_the_package(self) -> None:
        example = open_one(RegisterMachineData(seed=3, max_rounds=2))[5]
        text, truth = register_machine.generate_example(5, seed=3, max_rounds=2)
        assert (example.id, example.source) == ("register-machine/5", "register-machine")
        assert (example.messages[0]["content"], example.ground_truth) == (text, truth)

    def test_reasoning_gym_hands_the_entry_to_the_verifier(self) -> None:
        import reasoning_gym

        settings = ReasoningGymData(
            task="chain_sum", size=10, seed=5, options={"min_terms": 2, "max_terms": 2}
        )
        example = open_one(settings)[7]
        entry = json.loads(example.extra["reasoning_gym_entry"])
        assert (example.id, example.source) == ("reasoning-gym/chain_sum/7", "reasoning-gym/chain_sum")
        assert example.messages[0]["content"] == entry["question"]
        assert example.ground_truth == entry["answer"]
        dataset = reasoning_gym.create_dataset("chain_sum", size=10, seed=5, min_terms=2, max_terms=2)
        assert dataset.score_answer(example.ground_truth, entry) == 1.0
        assert open_one(settings)[7] == example

    def test_bad_reasoning_gym_settings(self) -> None:
        assert "did you mean chain_sum?" in refusal(ReasoningGymData(task="chain_sums"))
        assert "data.train[0].options" in refusal(ReasoningGymData(task="chain_sum", options={"terms": 3}))
        assert "data.train[0].options" in refusal(
            ReasoningGymData(task="chain_sum", options={"min_terms": -1})
        )
        assert "seed is a setting of its own" in refusal(
            ReasoningGymData(task="chain_sum", options={"seed": 3})
        )


class TestSeveral:
    def test_ids_are_unique_although_names_are_not(self) -> None:
        easy = ReasoningGymData(task="chain_sum", size=3, options={"max_terms": 2})
        hard = ReasoningGymData(task="chain_sum", size=3)
        first, second = open_sources([easy, hard])
        assert (first.name, second.name) == ("reasoning-gym/chain_sum", "reasoning-gym/chain_sum#2")
        assert len({e.id for e in [*first, *second]}) == 6
        assert {e.source for e in [*first, *second]} == {"reasoning-gym/chain_sum"}

    def test_the_same_entry_twice_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"data.held_out\[1\] repeats data.held_out\[0\]"):
            open_sources([RunningSumData(), RunningSumData()], "data.held_out")

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
    @settings(max_examples=50, deadline=None)
    def test_concatenation_is_the_list_of_all(self, sizes: list[int], data: st.DataObject) -> None:
        parts = [open_one(RunningSumData(name=f"part{i}", seed=i, size=size)) for i, size in enumerate(sizes)]
        everything = [example.id for part in parts for example in part]
        rows = data.draw(st.lists(st.integers(0, len(everything) - 1)))
        whole = Concatenation("whole", parts)
        assert [e.id for e in whole.examples(rows)] == [everything[row] for row in rows]
        with pytest.raises(IndexError):
            whole.examples([len(everything)])


def test_sources_import_neither_torch_nor_ray_nor_datasets() -> None:
    heavy = ("torch", "ray", "datasets", "transformers")
    code = f"import sys, sppo_ray.data.sources; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

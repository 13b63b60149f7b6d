"""Chat templates and tokens of prompts, the endless order of the stream, and held-out sets."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sppo_ray.config import DataSettings, JsonlData, RunningSumData
from sppo_ray.data.encoder import longest
from sppo_ray.data.prompts import PromptEncoder, PromptStream, load_held_out
from sppo_ray.data.sources import open_sources
from sppo_ray.errors import UserError
from sppo_ray.types import Example

# ids of the special words; GO is the generation prompt
BOS, EOS, UNK, USER, SYSTEM, END, GO = range(7)
SPECIAL = ["<s>", "</s>", "<unk>", "<user>", "<system>", "<end>", "<go>"]
WORDS = [*(f"w{i}" for i in range(100)), *"abcdefghijklmnopqrstuvwxyz0123456789="]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<go>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
)


def word(text: str) -> int:
    return len(SPECIAL) + WORDS.index(text)


def make_tokenizer(template: str | None = TEMPLATE, *, by_character: bool = False) -> PreTrainedTokenizerFast:
    """Words (or characters) of WORDS; puts BOS in front and EOS behind by itself, as Llama-like
    tokenizers do.
    """
    vocabulary = {text: index for index, text in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Split("", "isolated") if by_character else pre_tokenizers.Whitespace()
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
    )
    fast.chat_template = template
    return fast


WORDWISE = make_tokenizer()
CHARWISE = make_tokenizer(by_character=True)


def question(text: str, *before: tuple[str, str]) -> Example:
    messages = [*before, ("user", text)]
    return Example(
        "set/0", "set", tuple({"role": role, "content": content} for role, content in messages), "7"
    )


def data_settings(**changes: Any) -> DataSettings:
    small = {"train": [RunningSumData()], "prompts_per_step": 4, "minibatch_size": 1, "max_prompt_tokens": 20}
    return DataSettings(**{**small, **changes})


def encode(example: Example, policy: Any = WORDWISE, critic: Any = WORDWISE, **changes: Any) -> Any:
    return PromptEncoder(policy, critic, data_settings(**changes)).encode([example])[0]


def write_questions(path: Path, texts: list[str]) -> JsonlData:
    path.write_text(
        "".join(json.dumps({"prompt": text, "ground_truth": "1"}) + "\n" for text in texts), encoding="utf-8"
    )
    return JsonlData(path=str(path))


def make_stream(seed: int = 1, *, tokenizer: Any = WORDWISE, **changes: Any) -> PromptStream:
    config = data_settings(**changes)
    return PromptStream(open_sources(config.train), PromptEncoder(tokenizer, tokenizer, config), config, seed)


def ids_of(stream: PromptStream, *steps: int) -> list[str]:
    return [prompt.id for step in steps for prompt in stream.cohort(step)]


class TestEncoder:
    def test_template_and_generation_prompt_with_one_bos(self) -> None:
        # this tokenizer adds both by itself
        assert WORDWISE("w1")["input_ids"] == [BOS, word("w1"), EOS]
        prompt = encode(question("w1 w2"))
        assert prompt.text == "<s><user>w1 w2<end><go>"
        assert prompt.token_ids.tolist() == [BOS, USER, word("w1"), word("w2"), END, GO]

    def test_each_model_reads_the_same_messages_by_its_own_template_and_tokenizer(self) -> None:
        prompt = encode(
            question("w1"), critic=make_tokenizer("{{ messages[-1]['content'] }}<go>", by_character=True)
        )
        assert prompt.token_ids.tolist() == [BOS, USER, word("w1"), END, GO]
        assert prompt.critic_token_ids.tolist() == [word("w"), word("1"), GO]
        assert longest(prompt) == 5

    def test_without_a_template_the_plain_text_keeps_the_tokenizers_bos_but_not_its_eos(self) -> None:
        prompt = encode(question("w2", ("system", "w1")), policy=make_tokenizer(None))
        assert prompt.text == "w1\n\nw2"
        assert prompt.token_ids.tolist() == [BOS, word("w1"), word("w2")]
        assert prompt.critic_token_ids.tolist() == [BOS, SYSTEM, word("w1"), END, USER, word("w2"), END, GO]

    def test_equal_tokenizers_are_read_once_and_alike(self) -> None:
        prompt = encode(question("w1"), critic=make_tokenizer())
        assert prompt.token_ids is prompt.critic_token_ids

    def test_system_prompt_only_where_there_is_none(self) -> None:
        assert encode(question("w2"), system_prompt="w1").text == "<s><system>w1<end><user>w2<end><go>"
        assert (
            encode(question("w2", ("system", "w3")), system_prompt="w1").text
            == "<s><system>w3<end><user>w2<end><go>"
        )

    def test_suffix_goes_on_the_last_user_message_as_it_is(self) -> None:
        example = question("w2", ("user", "w1"))
        assert encode(example, prompt_suffix=" w9").text == "<s><user>w1<end><user>w2 w9<end><go>"
        assert example.messages[-1]["content"] == "w2"

    def test_suffix_without_user_message(self) -> None:
        lonely = Example("set/0", "set", ({"role": "system", "content": "w1"},), "7")
        with pytest.raises(UserError, match="prompt set/0: has no user message for data.prompt_suffix"):
            encode(lonely, prompt_suffix="w9")

    def test_only_the_critic_reads_the_reference_answer(self) -> None:
        example = replace(question("w1"), ground_truth="w7", extra={"steps": "w3 w4", "level": 5})
        plain = encode(example, prompt_suffix=" w9")
        told = encode(example, prompt_suffix=" w9", critic_suffix=" w8 {ground_truth} {extra.steps}")
        # The policy's prompt is the same; the critic's goes on after the suffix of both.
        assert (told.text, told.token_ids.tolist()) == (plain.text, plain.token_ids.tolist())
        words = [word(text) for text in ("w1", "w9", "w8", "w7", "w3", "w4")]
        assert told.critic_token_ids.tolist() == [BOS, USER, *words, END, GO]
        assert plain.critic_token_ids.tolist() == plain.token_ids.tolist()

    def test_a_field_that_the_row_lacks_names_prompt_and_field(self) -> None:
        with pytest.raises(UserError, match="prompt set/0: has no extra.hint, which the critic reads"):
            encode(question("w1"), critic_suffix="{extra.hint}")
        with pytest.raises(UserError, match="has no ground_truth"):
            encode(replace(question("w1"), ground_truth=""), critic_suffix="{ground_truth}")

    def test_a_template_that_refuses_the_messages(self) -> None:
        said = (
            "prompt set/0: the critic's chat template refuses its messages .no system role; roles: system, "
            "user"
        )
        with pytest.raises(UserError, match=said):
            encode(question("w2"), critic=make_tokenizer(NO_SYSTEM), system_prompt="w1")

    def test_a_tokenizer_of_another_kind_of_text(self) -> None:
        # <s> <user> <end> <go> and w1 are known; 4 unknown words are borne, 5 are half of all.
        assert encode(question("w1 A B C D")).token_ids.tolist().count(UNK) == 4
        with pytest.raises(UserError, match="prompt set/0: the policy's tokenizer knows 5 of its 10 tokens"):
            encode(question("w1 A B C D E"))

    def test_a_tokenizer_that_reads_nothing(self) -> None:
        blind = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"x": 0}, [])))
        with pytest.raises(UserError, match="prompt set/0: the policy's tokenizer knows 0 of its 0 tokens"):
            encode(question("w2"), policy=blind)

    def test_truncation_stored_in_a_tokenizer_is_not_applied(self) -> None:
        cutting = make_tokenizer()
        cutting.backend_tokenizer.enable_truncation(3)
        assert len(encode(question("w1 w2 w3 w4 w5"), policy=cutting).token_ids) == 9

    def test_ground_truth_source_and_extra_go_along(self) -> None:
        prompt = encode(Example("a/3", "math", ({"role": "user", "content": "w1"},), "42", {"k": 1}))
        assert (prompt.id, prompt.source, prompt.ground_truth, prompt.extra) == (
            "a/3",
            "math",
            "42",
            {"k": 1},
        )


class TestOrder:
    def test_unshuffled_order_is_the_files(self, tmp_path: Path) -> None:
        files = {"a.jsonl": ["w0", "w1", "w2"], "b.jsonl": ["w3", "w4", "w5"]}
        train = [write_questions(tmp_path / name, texts) for name, texts in files.items()]
        stream = make_stream(train=train, shuffle=False)
        assert ids_of(stream, 0, 1) == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2", "a/0", "a/1"]

    @given(
        size=st.integers(1, 40),
        a_step=st.integers(1, 12),
        epochs=st.integers(1, 3),
        seed=st.integers(0, 2**31 - 1),
    )
    @settings(max_examples=40, deadline=None)
    def test_each_epoch_is_a_permutation(self, size: int, a_step: int, epochs: int, seed: int) -> None:
        train = [RunningSumData(size=size, max_operands=4)]
        stream = make_stream(seed, train=train, prompts_per_step=a_step, tokenizer=CHARWISE)
        num_steps = -(-size * epochs // a_step)
        drawn = ids_of(stream, *range(num_steps))
        for epoch in range(epochs):
            assert sorted(drawn[epoch * size : (epoch + 1) * size]) == sorted(
                f"running-sum/{row}" for row in range(size)
            )

    @given(
        keep=st.lists(st.booleans(), min_size=1, max_size=30).filter(any),
        a_step=st.integers(1, 7),
        steps=st.permutations(range(8)),
    )
    @settings(max_examples=40, deadline=None)
    def test_any_step_is_reached_directly(
        self, tmp_path_factory: Any, keep: list[bool], a_step: int, steps: list[int]
    ) -> None:
        # A new stream gives the same prompts for a late step as one that gave all steps, in any
        # order. Dropped rows never occur.
        path = tmp_path_factory.mktemp("questions") / "a.jsonl"
        train = [write_questions(path, [f"w{i}" if kept else f"w{i} " * 20 for i, kept in enumerate(keep)])]
        changes: dict[str, Any] = {"train": train, "prompts_per_step": a_step, "overlong_prompts": "drop"}
        reader = make_stream(7, **changes)
        cohorts = {step: ids_of(reader, step) for step in steps}
        assert all(cohorts[step] == ids_of(make_stream(7, **changes), step) for step in (0, 3, 7))
        kept_ids = {f"a/{i}" for i, kept in enumerate(keep) if kept}
        drawn = [cohorts[step][i] for step in range(8) for i in range(a_step)]
        assert set(drawn) <= kept_ids
        for start in range(0, len(drawn) - len(kept_ids) + 1, len(kept_ids)):
            assert set(drawn[start : start + len(kept_ids)]) == kept_ids

    def test_epochs_and_seeds_differ(self) -> None:
        train = [RunningSumData(size=64)]
        orders = [
            ids_of(
                make_stream(seed, train=train, prompts_per_step=64, tokenizer=CHARWISE, max_prompt_tokens=40),
                step,
            )
            for seed, step in [(1, 0), (1, 1), (2, 0), (2, 1)]
        ]
        assert len({tuple(order) for order in orders}) == 4

    def test_the_order_of_a_seed_is_pinned(self) -> None:
        # Golden: a resumed run may run under a later NumPy than the one that began it.
        stream = make_stream(
            1, train=[RunningSumData(size=8)], prompts_per_step=8, tokenizer=CHARWISE, max_prompt_tokens=40
        )
        assert [[int(name.split("/")[1]) for name in ids_of(stream, step)] for step in (0, 1)] == [
            [2, 4, 7, 5, 0, 6, 3, 1],
            [5, 6, 3, 0, 7, 2, 1, 4],
        ]

    def test_a_step_larger_than_the_data_wraps_and_says_so_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        train = [write_questions(tmp_path / "a.jsonl", ["w0", "w1", "w2"])]
        with caplog.at_level(logging.WARNING):
            stream = make_stream(train=train, prompts_per_step=7)
            counts = Counter(ids_of(stream, 0, 1, 2))
        assert counts == {"a/0": 7, "a/1": 7, "a/2": 7}  # 3 steps of 7 = 7 epochs of 3
        assert [record.message for record in caplog.records] == [
            "data.train has 3 prompts, a step takes 7: steps repeat some prompts"
        ]

    def test_a_late_step_of_a_huge_source(self) -> None:
        stream = make_stream(
            train=[RunningSumData(size=200_000)],
            prompts_per_step=256,
            tokenizer=CHARWISE,
            max_prompt_tokens=40,
        )
        assert len(stream.cohort(1_000_000)) == 256
        assert stream.stats().judged == 200_000


class TestOverlong:
    # with <s> <user> <end> <go>: 5, 7, 9, 6 tokens
    TEXTS = ["w1", "w1 w2 w3", "w1 w2 w3 w4 w5", "w1 w2"]

    def test_refused_when_the_stream_is_made(self, tmp_path: Path) -> None:
        train = [write_questions(tmp_path / "a.jsonl", self.TEXTS)]
        said = (
            r"prompt a/1: 7 tokens \(and 1 more, the longest of 9\) as \w+.model reads it, "
            r"data.max_prompt_tokens is 6: raise it "
            r"to 9, or"
        )
        with pytest.raises(UserError, match=said):
            make_stream(train=train, max_prompt_tokens=6)
        assert make_stream(train=train, max_prompt_tokens=9).stats().tokens_max == 9

    def test_dropped_and_counted(self, tmp_path: Path) -> None:
        train = [write_questions(tmp_path / "a.jsonl", self.TEXTS)]
        stream = make_stream(train=train, max_prompt_tokens=7, overlong_prompts="drop", prompts_per_step=3)
        assert sorted(ids_of(stream, 0)) == ["a/0", "a/1", "a/3"]
        stats = stream.stats()
        assert (stats.total, stats.judged, stats.dropped_overlong, stats.dropped_held_out) == (4, 4, 1, 0)
        assert (stats.tokens_min, stats.tokens_median, stats.tokens_max) == (5, 6.0, 7)

    def test_the_critics_length_counts_too(self, tmp_path: Path) -> None:
        config = data_settings(train=[write_questions(tmp_path / "a.jsonl", ["w1 w2"])], max_prompt_tokens=8)
        # By characters: <s> <user> w 1 space w 2 <end> <go> = 9 tokens, against 6 of the policy.
        encoder = PromptEncoder(WORDWISE, CHARWISE, config)
        with pytest.raises(
            UserError, match=r"prompt a/0: 9 tokens as \w+.model reads it, .* is 8: raise it to 9"
        ):
            PromptStream(open_sources(config.train), encoder, config, 1)

    def test_procedural_prompts_are_refused_when_their_turn_comes(self) -> None:
        # 4 special tokens, 2 an operand and "=": 6 operands need 17.
        stream = make_stream(
            train=[RunningSumData(size=500, max_operands=6)], max_prompt_tokens=16, tokenizer=CHARWISE
        )
        with pytest.raises(UserError, match=r"prompt running-sum/\d+: 17 tokens.*overlong_prompts=drop"):
            for step in range(125):
                stream.cohort(step)

    def test_procedural_prompts_are_dropped_as_the_first_epoch_reaches_them(self) -> None:
        changes: dict[str, Any] = {
            "train": [RunningSumData(size=5000, max_operands=6)],
            "max_prompt_tokens": 16,
            "overlong_prompts": "drop",
            "prompts_per_step": 100,
        }
        stream = make_stream(**changes, tokenizer=CHARWISE)
        early = ids_of(stream, 0)
        assert stream.stats().judged == 1024
        assert all(len(prompt.token_ids) <= 16 for step in range(100) for prompt in stream.cohort(step))
        stats = stream.stats()
        assert stats.judged == 5000
        assert 0 < stats.dropped_overlong < 5000
        kept = 5000 - stats.dropped_overlong
        drawn = ids_of(stream, *range(100))
        assert len(set(drawn[:kept])) == kept
        assert ids_of(make_stream(**changes, tokenizer=CHARWISE), 77) == drawn[7700:7800]
        assert early == drawn[:100]

    def test_nothing_left(self, tmp_path: Path) -> None:
        train = [write_questions(tmp_path / "a.jsonl", self.TEXTS)]
        with pytest.raises(
            UserError, match="none of its 4 prompts is left .4 are longer than data.max_prompt_tokens 2"
        ):
            make_stream(train=train, max_prompt_tokens=2, overlong_prompts="drop")


class TestHeldOut:
    def test_sets_by_name_in_file_order(self, tmp_path: Path) -> None:
        held_out = [
            write_questions(tmp_path / "a.jsonl", ["w1", "w2", "w3"]),
            write_questions(tmp_path / "b.jsonl", ["w4"]),
        ]
        config = data_settings(held_out=held_out)
        sets = load_held_out(config, PromptEncoder(WORDWISE, WORDWISE, config), 2)
        assert {name: [prompt.id for prompt in prompts] for name, prompts in sets.items()} == {
            "a": ["a/0", "a/1"],
            "b": ["b/0"],
        }

    def test_a_file_that_holds_its_prompts_several_times_is_read_as_distinct_prompts(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # As AIME24's file, which holds its 30 problems 8 times. As 6 prompts, an interval would be
        # too narrow by sqrt(2).
        config = data_settings(held_out=[write_questions(tmp_path / "a.jsonl", ["w1", "w2", "w3"] * 2)])
        encoder = PromptEncoder(WORDWISE, WORDWISE, config)
        assert [prompt.id for prompt in load_held_out(config, encoder)["a"]] == ["a/0", "a/1", "a/2"]
        assert [prompt.id for prompt in load_held_out(config, encoder, 2)["a"]] == ["a/0", "a/1"]
        assert "a: holds each of its 3 prompts 2 times; read as 3 prompts" in caplog.text

    def test_overlong_follows_the_same_rule(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        held_out = [write_questions(tmp_path / "a.jsonl", ["w1", "w1 w2 w3"])]
        refuse = data_settings(held_out=held_out, max_prompt_tokens=6)
        drop = data_settings(held_out=held_out, max_prompt_tokens=6, overlong_prompts="drop")
        encoder = PromptEncoder(WORDWISE, WORDWISE, refuse)
        with pytest.raises(UserError, match=r"prompt a/1: 7 tokens as \w+.model reads it, .* is 6"):
            load_held_out(refuse, encoder)
        assert [prompt.id for prompt in load_held_out(drop, encoder)["a"]] == ["a/0"]
        assert "data.held_out: a: left out 1 over-long prompts" in caplog.text

    def test_a_file_that_holds_held_out_prompts_is_refused(self, tmp_path: Path) -> None:
        # The same words with other spacing, another Unicode form (a ligature) and a system message
        # are the same prompt.
        train = [write_questions(tmp_path / "train.jsonl", ["w0", "w1  w2\n", "ﬁ w3"])]
        held_out = [write_questions(tmp_path / "test.jsonl", ["w9", "fi w3", "w1 w2"])]
        with pytest.raises(
            UserError, match="2 prompts are also in data.held_out .train/1 = test/2, train/2 = test/1"
        ):
            make_stream(train=train, held_out=held_out, system_prompt="w5")
        assert len(make_stream(train=train, held_out=held_out, held_out_overlap="allow").cohort(0)) == 4
        kept = make_stream(train=train, held_out=held_out, held_out_overlap="drop")
        assert {prompt.id for prompt in kept.cohort(0)} == {"train/0"} and kept.stats().dropped_held_out == 2

    def test_a_procedural_source_leaves_them_out(self) -> None:
        train = RunningSumData(name="train", size=50)
        changes: dict[str, Any] = {
            "train": [train],
            "held_out": [RunningSumData(name="test", size=10)],
            "prompts_per_step": 40,
        }
        stream = make_stream(**changes, tokenizer=CHARWISE, max_prompt_tokens=40)
        held_out = {
            prompt["content"] for row in range(10) for prompt in open_sources([train])[0][row].messages
        }
        drawn = stream.cohort(0)
        # the same generator: rows 0 to 9, and chance repeats of them
        assert stream.stats().dropped_held_out >= 10
        assert not any(text in prompt.text for prompt in drawn for text in held_out)

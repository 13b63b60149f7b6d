"""Chat templates that render too long or too much are refused; usual templates are not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sppo_ray.data import encoder, render_guard
from sppo_ray.data.prompts import PromptEncoder
from sppo_ray.data.render_guard import RenderTooLarge, bounded_rendering, problem_of
from sppo_ray.errors import UserError
from tests.unit.data.test_prompts import TEMPLATE, data_settings, encode, make_tokenizer, question

NESTED = "".join(f"{{% for {name} in range(100000) %}}" for name in "abc") + "{% endfor %}" * 3
DOUBLING = (
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_guard, "RENDER_S", 0.5)
    monkeypatch.setattr(render_guard, "GROWTH_BYTES", 200 << 20)


def test_nested_ranges_are_given_up(impatient: None) -> None:
    tokenizer = make_tokenizer(NESTED)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"^prompt set/0: the policy's chat template takes more than .* to render it"
    ):
        encode(question("w1 w2"), tokenizer, tokenizer)
    assert time.monotonic() - began < 10.0


def test_so_is_one_that_looks_at_the_prompt_first(impatient: None) -> None:
    tokenizer = make_tokenizer("{% if 'w9' in messages[0]['content'] %}" + NESTED + "{% endif %}" + TEMPLATE)
    made = PromptEncoder(tokenizer, tokenizer, data_settings())
    assert made.encode([question("w1")])[0].text == "<s><user>w1<end><go>"
    with pytest.raises(UserError, match="takes more than"):
        made.encode([question("w1"), question("w9")])
    assert made.encode([question("w2")])[0].text == "<s><user>w2<end><go>"  # nothing arrives later


def test_one_that_takes_all_memory_is_given_up(impatient: None) -> None:
    tokenizer = make_tokenizer(DOUBLING)
    with pytest.raises(UserError, match="takes more than"):
        encode(question("w1"), tokenizer, tokenizer)


def test_a_text_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "LONGEST_TEXT", 1000)
    tokenizer = make_tokenizer("{% for a in range(5000) %}w1 {% endfor %}")
    with pytest.raises(UserError, match="chat template makes 15000 characters of it"):
        encode(question("w1"), tokenizer, tokenizer)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ 'a' * 10**9 }}", "raises to a power"),
        ("{{ 'a' * 1000000 }}", "multiplies"),
        ("{{ 'a' * 999 * 999 * 999 }}", "multiplies"),
        ("{% set n = 999 %}{% set s = 'a' * n %}{{ s * n }}", "multiplies"),
        ("x" * 300_000, "has 300000 characters"),
    ],
)
def test_what_cannot_be_watched_is_refused_unrendered(template: str, what: str) -> None:
    assert what in (problem_of(template) or "")
    tokenizer = make_tokenizer(template)
    with pytest.raises(UserError, match=f"the policy's chat template {what}"):
        encode(question("w1"), tokenizer, tokenizer)


@pytest.mark.parametrize(
    "template",
    [TEMPLATE, "{{ ' ' * 4 }}", "{{ loop_index * 2 }}", "{% generation %}x{% endgeneration %}", "{{"],
)
def test_ordinary_templates_are_not_refused(template: str) -> None:
    assert problem_of(template) is None


def test_what_is_quick_enough_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the limit is reached right at the end: the error does not arrive after it."""
    monkeypatch.setattr(render_guard, "RENDER_EACH_S", 0.0)
    monkeypatch.setattr(render_guard, "_LOOK_S", 0.0005)
    for limit in (0.0, 0.0005, 0.001, 0.002):
        monkeypatch.setattr(render_guard, "RENDER_S", limit)
        for _ in range(50):
            try:
                with bounded_rendering(1):
                    total: Any = sum(range(5000))
            except RenderTooLarge:
                continue
            assert total == 12497500
            sum(range(5000))

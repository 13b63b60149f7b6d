"""Untrusted YAML: documents that expand to gigabytes or hide a setting are refused with the
line.
"""

from __future__ import annotations

import time

import pytest

from sppo_ray.config.loading import dump_config, load_config, recipe_names
from sppo_ray.config.outside_yaml import MAX_BYTES, read_yaml, write_yaml
from sppo_ray.errors import UserError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 1: the anchor &a"),
        ("a: 1\nb: *a", r"line 2: the alias \*a"),
        ("loop: {steps: 1}\nname: x\nloop: {steps: 2}", "'loop' is on line 1 and again on line 3"),
        ("data:\n  a: 1\n  a: 2", "'a' is on line 2 and again on line 3"),
        ("{a: 1, a: 2}", "again on line 1"),
        ("[" * 100_000, "nested more than 40 deep"),
        ("- 1\n" * 60_000, "more than 50000 values"),
        ("a: " + "x" * MAX_BYTES, "is larger than 1048576 bytes"),
        ("a: " + "9" * 5000, "line 1: a number of 5000 characters"),
        ("a: " + ":".join(["1"] * 100_000), "line 1: a number of 199999 characters"),
        ("a: 2026-99-99", "holds a value that YAML does not have"),
        ("a: !!bool x", "holds a value that YAML does not have"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=rf"^here: .*{message}"):
        read_yaml(text, "here")
    assert time.process_time() - began < 5.0


def test_a_recipe_with_a_section_twice_or_an_alias_is_refused(tmp_path) -> None:
    recipe = tmp_path / "mine.yaml"
    text = dump_config(load_config("quickstart"))
    recipe.write_text(text + "loop: {steps: 3}\n")
    with pytest.raises(UserError, match=r"'loop' is on line \d+ and again on line"):
        load_config(str(recipe))
    recipe.write_text(text.replace("name: quickstart", "name: &n quickstart"))
    with pytest.raises(UserError, match="the anchor &n"):
        load_config(str(recipe))
    with pytest.raises(UserError, match="override --data.train: line 1: the anchor"):
        load_config("quickstart", ["--data.train=[&a {type: running-sum}, *a]"])


def test_what_is_written_has_no_alias() -> None:
    shared = {"a": [1]}
    text = write_yaml({"x": shared, "y": shared})
    assert "&" not in text and read_yaml(text, "here") == {"x": shared, "y": shared}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_comes_back_from_its_own_settings(name: str, tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(load_config(name)))
    assert load_config(str(tmp_path / "config.yaml")) == load_config(name)

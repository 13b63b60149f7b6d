"""Tools: what the policy writes, what is carried out, and what it reads then."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.config.environment import FunctionTool, ToolsEnvironment
from sppo_ray.environments.base import Observation, Row
from sppo_ray.environments.tools.calculator import CannotCalculate, calculate
from sppo_ray.environments.tools.environment import list_tools, make_tools_environment
from sppo_ray.environments.tools.functions import function_tool
from sppo_ray.errors import UserError

MODULE = "tests.unit.environments.environments_for_tests"


def answer(action: str, *functions: str, **settings: Any) -> Observation:
    tools = [{"type": "calculator"}, *({"type": "function", "function": f"{MODULE}:{f}"} for f in functions)]
    make = make_tools_environment(ToolsEnvironment(tools=tools, max_turn_tokens=8, **settings))
    result = make(Row("", "", ""), 0).step(action)
    return asyncio.run(result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("347*862", "299114"),
        ("0.1+0.2", "0.3"),
        ("-7//2", "-4"),  # as Python, rounded down
        ("-7%3", "2"),
        ("(1+2)^3", "27"),
        ("1,000/8", "125"),
        ("1,234,567", "1234567"),
        ("2**0.5", "1.41421356237309504880168872420969807856967187537694807317668"),
        (" 12 ", "12"),
        ("9007199254740993.0 - 1", "9007199254740992"),
        ("3.14159265358979323846*2", "6.28318530717958647692"),
        ("2**199 % 3", "2"),
        ("-7 // 2", "-4"),
        ("7 % -3", "-2"),
    ],
)
def test_the_calculator(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", "1+", "1/0", "9**9**9", "1e999", "0**-1", "a", "__import__('os')", "[1]"),
        *("2,5*2", "1,0000", "1" * 300, "1<2", "'a'*3", "10**61", "7**72 % 13", "10**60 + 7"),
    ],
)
def test_the_calculator_refuses_the_rest(expression: str) -> None:
    with pytest.raises(CannotCalculate):
        calculate(expression)


@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_the_calculator_only_ever_calculates_or_refuses(expression: str) -> None:
    with contextlib.suppress(CannotCalculate):
        assert isinstance(calculate(expression), str)


def test_a_tagged_call() -> None:
    seen = answer("so <calculator>2*3</calculator> and more")
    assert (seen.text, seen.done, seen.role) == ("6", False, "user")
    assert answer("the answer is 6").done
    assert answer("<calculator>2*").text == "error: the call has no </calculator>"
    assert answer("<shout>hi</shout>", "shout").text == "HI"
    assert "has 2 parameters" in answer("<add>1</add>", "add").text


@pytest.mark.parametrize("how", ["hermes", "llama"])
def test_calls_in_json(how: str) -> None:
    key = "arguments" if how == "hermes" else "parameters"

    def call(text: str) -> Observation:
        return answer(f"<tool_call>\n{text}\n</tool_call>" if how == "hermes" else text, "add", format=how)

    seen = call(f'{{"name": "add", "{key}": {{"a": 1, "b": 2}}}}')
    assert (seen.text, seen.role, seen.done) == ("3.0", "tool", False)
    assert call(f'{{"name": "add", "{key}": {{"a": 1}}}}').text == "2.0"  # b has a default
    assert "a is no integer" in call(f'{{"name": "add", "{key}": {{"a": "1"}}}}').text
    assert "lacks a" in call(f'{{"name": "add", "{key}": {{}}}}').text
    assert "no parameter c" in call(f'{{"name": "add", "{key}": {{"a": 1, "c": 1}}}}').text
    unknown = call(f'{{"name": "sub", "{key}": {{}}}}').text
    assert unknown == "error: there is no tool 'sub'; there is: calculator, add"
    assert "no JSON" in call('{"name": add}').text
    if how == "llama":
        assert call('{"type": "function", "name": "add", "parameters": {"a": 1}}').text == "2.0"
    assert answer("2 and 3 make 5", "add", format=how).done


def test_hermes_may_call_several() -> None:
    one = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert answer(one * 2, "add", format="hermes").text == "2.0\n2.0"
    assert answer(one * 20, "add", format="hermes").text.count("only 8 calls") == 12


def test_arguments_are_what_the_schema_says() -> None:
    def call(name: str, arguments: str) -> str:
        text = f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'
        return answer(text, name, format="hermes").text

    assert answer("<listed>[1, 2]</listed>", "listed").text == "3"
    assert answer("<listed>12</listed>", "listed").text.startswith("error: items is no array")
    assert answer("<listed>a</listed>", "listed").text == "error: 'a' is no array"
    assert call("flag", '{"on": false, "note": null}') == "False None"  # null is the default
    assert "on is no boolean" in call("flag", '{"on": "false"}')
    assert "lacks on" in call("flag", "{}") and "on is no boolean" in call("flag", '{"on": null}')
    assert "b is no number" in call("add", '{"a": 1, "b": 1' + "0" * 400 + "}")


def test_calls_in_the_thinking_are_not_carried_out() -> None:
    thought = "<think>I could <calculator>1+1</calculator></think>"
    assert answer(f"{thought}It is 2.").done
    assert answer(f"{thought}<calculator>2+2</calculator>").text == "4"
    assert answer("<think><calculator>1+1</calculator>").done  # it never stopped thinking


def test_long_outputs_are_cut_and_failures_are_errors_of_the_environment() -> None:
    cut = answer(f"<shout>{'a' * 50}</shout>", "shout", max_output_chars=5)
    assert cut.text == "AAAAA... (50 characters)"
    with pytest.raises(OSError, match="the disk is gone"):
        answer("<broken>a</broken>", "broken")


def test_the_schema_of_a_function() -> None:
    tool = function_tool(FunctionTool(function=f"{MODULE}:add"))
    parameters = {"a": {"type": "integer"}, "b": {"type": "number"}}
    assert tool.schema()["function"] == {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": parameters, "required": ["a"]},
    }


@pytest.mark.parametrize(
    ("name", "message"), [("untyped", "parameter text has no type"), ("undocumented", "has no docstring")]
)
def test_a_function_without_a_schema_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        function_tool(FunctionTool(function=f"{MODULE}:{name}"))


def test_what_a_prompt_says_of_the_tools() -> None:
    tools = [{"type": "calculator"}]
    tagged = list_tools(ToolsEnvironment(tools=tools, max_turn_tokens=8))
    assert "<calculator>expression</calculator>: Calculate" in tagged
    (listed,) = list_tools(ToolsEnvironment(tools=tools, max_turn_tokens=8, format="hermes"))
    assert listed["function"]["name"] == "calculator"


def test_the_python_tool_runs_in_the_sandbox() -> None:
    tools = [{"type": "python", "timeout_s": 3.0}]
    make = make_tools_environment(ToolsEnvironment(tools=tools, max_turn_tokens=8))

    def run(code: str) -> str:
        return asyncio.run(make(Row("", "", ""), 0).step(f"<python>{code}</python>")).text

    assert run("print(sum(range(5)))") == "10\n"
    assert run("open('/etc/passwd')").startswith("error: the program failed")
    assert run("while True: pass").startswith("error: no result within 3 s")


def test_the_calls_of_an_action_share_the_time_of_the_python_tool() -> None:
    tools = [{"type": "python", "timeout_s": 3.0}]
    make = make_tools_environment(ToolsEnvironment(tools=tools, max_turn_tokens=8, format="hermes"))
    codes = ["print(1)", "import time; time.sleep(60)", "print(2)", "print(3)"]
    said = [json.dumps({"name": "python", "arguments": {"code": code}}) for code in codes]
    environment = make(Row("", "", ""), 0)
    results = asyncio.run(environment.step("".join(f"<tool_call>{one}</tool_call>" for one in said))).text
    first, late, *refused = filter(None, results.split("\n"))
    assert first == "1" and late.startswith("error: no result within ")
    assert refused == ["error: the calls before took the 3 s of this action"] * 2
    again = asyncio.run(environment.step(f"<tool_call>{said[0]}</tool_call>")).text
    assert again == "1\n"  # the next action has its own time


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tools": []}, "tools is empty"),
        ({"tools": [{"type": "calculator"}] * 2}, "tools has calculator twice"),
        ({"tools": [{"type": "python", "timeout_s": 20}]}, "not below deadline_s"),
        ({"tools": [{"type": "function", "function": "tools/add.py"}]}, "is not an import path"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToolsEnvironment(max_turn_tokens=8, **settings)

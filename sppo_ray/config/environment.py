"""The section `environment`: what answers the policy's actions, how long, in which processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, field_validator, model_validator

from sppo_ray.settings import PositiveInt, Settings

Role = Literal["user", "tool"]


def import_path(given: str) -> str:
    """Check the form of an import path. Raises ValueError."""
    module, separator, name = given.partition(":")
    if not separator or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(
            f"{given!r} is not an import path: write it as package.module:Name, without slashes or file names"
        )
    return given


class ObservationFormat(Settings):
    """The text around an observation, between the end of an action and the start of the next."""

    before: str = ""
    """Between the end of an action and the observation."""
    after: str = ""
    """Between the observation and the next action."""


class EnvironmentBase(Settings):
    """The settings that all environments share."""

    max_turns: PositiveInt = 8
    """Actions of an episode. After the last one the episode ends, with the reward so far."""
    max_turn_tokens: PositiveInt
    """Tokens of one action. An action that is cut ends the episode. An episode also ends when
    another action would not fit into rollout.max_response_tokens, which counts actions and
    observations.
    """
    deadline_s: Annotated[float, Field(gt=0)] = 10.0
    """When a step of the environment takes longer, the episode is a reward error."""
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """An episode that has taken longer ends after its turn, with the reward so far. null = no
    limit.
    """
    processes: PositiveInt = 1
    """Processes that run the environment; each has many episodes at the same time. The episodes of
    one that ends are repeated in another, from their seeds and actions.
    """
    memory_mib: PositiveInt = 2048
    """Limit on the address-space growth of a process."""
    cpus: Annotated[float, Field(gt=0)] = 0.5
    """Logical CPUs that Ray reserves for all its processes."""
    observation_format: ObservationFormat | None = None
    """The text around an observation. null = as the policy's chat template writes a message after
    the assistant's.
    """

    @property
    def asks_reward_function(self) -> bool:
        """Whether reward.function scores the last action of an episode."""
        return False

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of the messages that it writes."""
        return ("user",)

    @property
    def walls(self) -> Literal["none", "wanted", "required"]:
        """The confinement of its processes, as of `rewards.base.Verifier`."""
        return "wanted"

    @property
    def runs_own_code(self) -> bool:
        """Whether its processes run code of the user, from the import path."""
        return False


class GuessNumberEnvironment(EnvironmentBase):
    """Find a number from the answers + (higher) and - (lower), for data of type guess-number."""

    type: Literal["guess-number"] = "guess-number"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)


class CalculatorTool(Settings):
    """Integers and decimals with + - * / // % ** and brackets."""

    type: Literal["calculator"] = "calculator"
    name: ClassVar[str] = "calculator"


class PythonTool(Settings):
    """Runs a Python program in the sandbox of the reward `code`, and returns what it prints."""

    type: Literal["python"] = "python"
    name: ClassVar[str] = "python"
    timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Limit for all programs of one action."""
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Address space of a program."""


class FunctionTool(Settings):
    """A function of your own. Its schema comes from its type hints and its docstring."""

    type: Literal["function"] = "function"
    function: str
    """Import path "package.module:function" of a module in the working directory or on your
    PYTHONPATH. It may be a coroutine function.
    """

    @property
    def name(self) -> str:
        return self.function.partition(":")[2]

    _form = field_validator("function")(import_path)


Tool = Annotated[Union[CalculatorTool, PythonTool, FunctionTool], Field(discriminator="type")]


class ToolsEnvironment(EnvironmentBase):
    """Tools that the policy may call. An action without a call is the answer, which reward.function
    scores.
    """

    type: Literal["tools"] = "tools"
    range: ClassVar[tuple[float, float]] = (0.0, 0.0)
    tools: tuple[Tool, ...]
    format: Literal["tagged", "hermes", "llama"] = "tagged"
    """How the policy writes a call. tagged: <name>argument</name>. hermes (Qwen, Hermes):
    <tool_call>{"name", "arguments"}</tool_call>. llama: {"name", "parameters"} alone.
    """
    describe_tools: bool = True
    """Tell the policy about its tools: hermes and llama through the chat template's own list of
    tools, tagged in the system message.
    """
    max_output_chars: PositiveInt = 2000
    """What a tool returns beyond that is cut, and the cut is marked."""
    confined: bool = True
    """As of type custom, for functions of your own. The python tool confines its programs itself:
    beside it functions are not confined.
    """

    @property
    def asks_reward_function(self) -> bool:
        return True

    @property
    def roles(self) -> tuple[Role, ...]:
        return ("user",) if self.format == "tagged" else ("tool",)

    @property
    def runs_own_code(self) -> bool:
        return any(tool.type == "function" for tool in self.tools)

    @property
    def walls(self) -> Literal["none", "wanted", "required"]:
        kinds = {tool.type for tool in self.tools}
        if not self.confined or "python" in kinds:
            return "none"
        return "required" if "function" in kinds else "wanted"

    @model_validator(mode="after")
    def _tools_are_apart(self) -> ToolsEnvironment:
        names = [tool.name for tool in self.tools]
        if not names:
            raise ValueError("tools is empty: name at least one, e.g. [{type: calculator}]")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tools has {twice[0]} twice, and a call names only one: remove or rename one")
        slow = [tool for tool in self.tools if isinstance(tool, PythonTool)]
        if slow and slow[0].timeout_s >= self.deadline_s:
            raise ValueError(
                f"the python tool's timeout_s {slow[0].timeout_s:g} is not below deadline_s "
                f"{self.deadline_s:g}: a program that hangs would be an error of the environment; set "
                "deadline_s to timeout_s and 2 s or more"
            )
        return self


class CustomEnvironment(EnvironmentBase):
    """A class of your own: `Environment(row, seed)` with `step(action) -> Observation`
    (docs/environments.md).
    """

    type: Literal["custom"] = "custom"
    environment: str
    """Import path "package.module:Class" of a module in the working directory or on your
    PYTHONPATH.
    """
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Passed to the class as keyword arguments."""
    role: Role = "user"
    """The role of its messages in the chat template."""
    scored_by: Literal["environment", "function"] = "environment"
    """environment: the reward is the sum of its parts. function: reward.function scores the last
    action, and the parts are added.
    """
    range: tuple[float, float] | None = None
    """The declared range of the sum of the parts; null = [0, 1], with scored_by function [0, 0]. A
    critic trained by binary cross-entropy (sppo; ppo with critic_loss bce) needs [0, 1].
    """
    confined: bool = True
    """true: it reads the Python installation and the import path, but writes no file, opens no
    socket, starts no process and sees no keys in its variables. false removes these limits (except
    for the cluster's keys), e.g. for tools behind a network.
    """

    @property
    def asks_reward_function(self) -> bool:
        return self.scored_by == "function"

    @property
    def runs_own_code(self) -> bool:
        return True

    @property
    def walls(self) -> Literal["none", "wanted", "required"]:
        return "required" if self.confined else "none"

    @property
    def roles(self) -> tuple[Role, ...]:
        return (self.role,)

    _form = field_validator("environment")(import_path)


EnvironmentSettings = Annotated[
    Union[GuessNumberEnvironment, ToolsEnvironment, CustomEnvironment], Field(discriminator="type")
]

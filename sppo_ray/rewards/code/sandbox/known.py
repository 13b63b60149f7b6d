"""Fixed meanings of names that tests use without an import, independent of the program."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any

PROGRAM_MODULES = frozenset(
    {"solution", "main", "program", "answer", "submission", "__main__", "your_module"}
)
_ERROR_MODULES = """_csv _queue binascii configparser dataclasses decimal json.decoder numpy.linalg queue re
    statistics struct zoneinfo._common"""
ERROR_MODULES = frozenset(_ERROR_MODULES.split())
"""Modules whose exceptions keep their type, if the tests have imported them."""
_MODULE_NAMES = """bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions
    functools heapq inspect io itertools json math numbers numpy operator os pytest random re statistics string sys textwrap
    time types typing unittest"""  # noqa: E501
_MODULES = frozenset(_MODULE_NAMES.split())
_SHORT = {"np": "numpy", "dt": "datetime", "mock": "unittest.mock"}
_MEMBERS = {
    "math": """acos asin atan atan2 ceil comb cos degrees dist e erf exp fabs factorial floor fmod fsum gcd hypot inf isclose
    isfinite isinf isnan isqrt lcm log log10 log1p log2 nan perm pi prod radians sin sqrt tan tau trunc""",  # noqa: E501
    "collections": "ChainMap Counter OrderedDict UserDict UserList defaultdict deque namedtuple",
    "itertools": """accumulate batched chain combinations combinations_with_replacement compress count cycle dropwhile
    filterfalse groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest""",  # noqa: E501
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace nlargest nsmallest",
    "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
    "copy": "copy deepcopy",
    "contextlib": "redirect_stdout suppress",
    "dataclasses": "dataclass",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "enum": "Enum IntEnum",
    "fractions": "Fraction",
    "io": "BytesIO StringIO",
    "operator": "attrgetter itemgetter",
    "random": "choice choices randint randrange sample seed shuffle uniform",
    "statistics": "mean median mode pstdev stdev variance",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation",
    "typing": "Any Callable Dict Generator Iterable Iterator List Mapping NamedTuple Optional Sequence Set "
    "Tuple Union",
    "numpy": "allclose arange array array_equal",
    "numpy.testing": "assert_allclose assert_almost_equal assert_array_almost_equal assert_array_equal "
    "assert_equal",
    "unittest": "TestCase",
    "unittest.mock": "patch",
    "pytest": "approx raises",
}
_HOME = {name: module for module, names in _MEMBERS.items() for name in names.split()}
_TASKS = {
    "math",
    "collections",
    "itertools",
    "functools",
    "heapq",
    "bisect",
    "statistics",
    "fractions",
    "datetime",
}
_CONSTANTS = {
    # as `same`
    **dict.fromkeys(["TOL", "TOLERANCE", "EPS", "EPSILON", "tol", "eps", "epsilon"], 1e-6),
    "INF": float("inf"),
    "PI": 3.141592653589793,
    "MOD": 10**9 + 7,
}


def is_known(name: str) -> bool:
    """Whether this name has a fixed meaning."""
    return name in _HOME or name in _MODULES or name in _SHORT or name in _CONSTANTS


def is_task(name: str) -> bool:
    """Whether a function of this name may be the task: `gcd` may, `randint` and `approx` may
    not.
    """
    return _HOME.get(name) in _TASKS


def known(name: str, *, called: bool) -> Any:
    """Return the object of the name. `copy` and `datetime` are modules, or their functions of that
    name if the tests call them. Raises ImportError when the package is missing.
    """
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in _SHORT or (name in _MODULES and not (called and name in _HOME)):
        return importlib.import_module(_SHORT.get(name, name))
    return getattr(importlib.import_module(_HOME[name]), name)

"""The answer of a response without a box: a right number that is not the answer."""

from __future__ import annotations

import pytest

from sppo_ray.rewards.math import make_math_verifier

ANOTHER_THING = [
    "The answer is $5$ plus $3$",
    "The answer is $5$ times $3$",
    "The answer is $5$ less than $10$",
    "The answer is $5$ factorial",
    "The answer is $5$ squared",
    "The answer is $5$ million",
    "The answer is $5$%",
    "The answer is $5$ dozen",
    "The answer is $5$ of $12$",
    "The answer is $5$^2",
    "The answer is $5$!",
    "The answer is $5$ over $7$",
    "The answer is $5$ \\cdot $2$",
    "The answer is $5$:$3$",
    "The answer is $5$x",
    "The answer is $5$00",
    "The answer is $5$e3",
    "The answer is $5$k",
    "The answer is $5$ in base $7$",
    "The answer is $5$ mod $7$",
    "The answer is $5$ below zero",
    "The answer is $5$ with a minus sign",
    "The answer is given by $5$ choose $2$",
    "The answer is $5$ - $6$",
    "The answer is $5$ if $x>0$ and $6$ otherwise",
    "The answer is $5$ (or $6$)",
    "The answer is $5$ or maybe $6$",
    "The answer is 5.\nOops, it is 6.",
    "The answer is 5.\n\nOn second thought, it is 6.",
    "The answer is 5. Hmm, let me recheck: 2+4=6.",
    "The answer is 5.\nSorry, I made an error. It is 6.",
    "I doubt that the answer is 5.",
    "It is false that the answer is 5.",
    "One might think that the answer is 5.",
    "The answer is $5$ \u2014 or $6$",
    "The answer is $5$\nor $6$",
    "The answer is $5$ is wrong",
    "The answer is $5$? No, it is $6$",
    "The answer is $5$. Wait, that's wrong; it should be $6$.",
    "The answer is $5$... no, $6$",
    "The answer is $5$, which is incorrect.",
    "Bob says the answer is $5$, but this is false.",
    "The answer is $5$. Alternatively, the answer might be $6$",
    "The answer is $5$. Actually the answer: $6$",
    "The answer is $5$. The final answer should be 6.",
    "The answer isn't $5$",
    "No answer is $5$",
    "Twice the answer is $5$",
    "Half the answer is $5$",
    "The square of the answer is $5$",
    "The opposite of the answer is $5$",
    "The negative of the answer is $5$",
    "One more than the answer is $5$",
    "The answer plus one is $5$",
    "The answer times two is $5$",
    "The answer squared is $5$",
    "The answer divided by 2 is $5$",
    "The last digit of the answer is $5$",
    "The number of digits in the answer is $5$",
    "An upper bound for the answer is $5$",
    "The remainder of the answer is $5$",
    "The intermediate result is $5$, so $x=6$",
    "The probability that the answer is $5$ is $0$",
    "The answer to part (a) is $5$, and part (b) is $6$",
]
RIGHT = [
    "The answer is $5$.",
    "**The answer is 5.**",
    "Thus the total is 5. The answer is therefore 5.",
    "So the final answer is **5**.",
    "**Answer:** 5",
    "Thus, we conclude that the answer is $5$ apples.",
    "The answer to the question is 5, since $2+3=5$.",
    "Therefore the answer is $5$. I checked it with $x=2$.",
    "As a result, the answer equals $5$",
    "Answer: 5\n\nI hope this answer helps.",
]


@pytest.mark.parametrize("response", ANOTHER_THING)
def test_another_thing_than_the_answer_is_stated(response: str) -> None:
    assert make_math_verifier("last")(response, "5", {})[0] == 0.0


@pytest.mark.parametrize("response", RIGHT)
def test_the_answer_is_stated(response: str) -> None:
    assert make_math_verifier("last")(response, "5", {})[0] == 1.0


# without a claim: the last formula or number
MORE_THAN_IT = r"""So x = − 5|It is – 5|minus 5|It is negative 5|So −$5$|-$5$|**−5**|The total is 5 million
$5$ thousand|$5$ percent|$5$%|5 %|5 per cent|5½|5²|2^5|4 /5|4÷5|4 / $5$|√5|\sqrt{5}|5π
5i|5x|It is 5.5x|3*5|2**5|2 + 5|$2$ + $5$|$5$ plus $5$|3 times 5|10 over 5|5!|x5|-**5**
-\mathbf{5}|5\pi|5 π|$5$ dozen|$2$^5|-$x=5$"""


@pytest.mark.parametrize("response", MORE_THAN_IT.replace("\n", "|").split("|"))
def test_a_part_of_a_value_is_not_the_answer(response: str) -> None:
    assert make_math_verifier("last")(response, "5", {})[0] == 0.0


@pytest.mark.parametrize(
    ("response", "truth"),
    [
        ("So x = −5", "-5"),
        ("So x = − 5.", "-5"),
        ("minus 5", "-5"),
        ("-$5$", "-5"),
        ("2 + 3 = 5", "5"),
        ("5 - 9 = -4", "-4"),
        ("It costs $1,234.", "1234"),
        ("5 cm", "5"),
        ("5kg", "5"),
        ("about 5 %", "5\\%"),
        ("$5$ per cent", "5\\%"),
        ("I get 3/4", "3/4"),
        ("* one\n* 5", "5"),
        ("We have $a=2$ and so $b=5$.", "5"),
    ],
)
def test_the_last_value_counts_with_its_sign(response: str, truth: str) -> None:
    assert make_math_verifier("last")(response, truth, {})[0] == 1.0

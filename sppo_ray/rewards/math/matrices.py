r"""Expressions of matrices, columns and group elements: Q\Lambda Q^{-1}, x^T A x, AB - BA.

Letters are numbers unless something shows that their order counts: a capital is inverted beside
another letter, a letter is transposed, a product has a letter and its own inverse, or one
expression has AB and BA. Then capitals are matrices, lower-case letters that are transposed or end
a product behind a matrix are columns, and other letters are numbers. Two expressions are the same
when they are so at two choices of matrices, exactly. A function has a value that only the same
argument gives.

X in (X^TX)^{-1} has fewer columns than rows, and no inverse. It is a square matrix here whose last
column is 0, and X^TX is inverted without its last row and column.
"""

from __future__ import annotations

from sppo_ray.rewards.math.matrix_letters import kinds_of
from sppo_ray.rewards.math.matrix_values import MatrixEvaluator, NoMatrix
from sppo_ray.rewards.math.nodes import Node

_FAILURES = (NoMatrix, ZeroDivisionError)


def same_matrices(truth: Node, answer: Node, *, known: bool = False) -> bool | None:
    """Whether two expressions are the same; None where their letters are numbers. `known`: the
    question is about matrices. Raises TooLarge.
    """
    trees = (truth, answer)
    for kinds in kinds_of(trees, known=known):
        try:
            expected = [MatrixEvaluator(kinds, trees, choice).value(truth) for choice in (0, 1)]
        except _FAILURES:
            continue
        try:
            return expected == [MatrixEvaluator(kinds, trees, choice).value(answer) for choice in (0, 1)]
        except _FAILURES:
            return False
    return None

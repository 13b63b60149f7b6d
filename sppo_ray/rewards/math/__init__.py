r"""The verifier of mathematical answers.

    response --extract--> box --text--> one spelling --reader--> a form --compare--> verdict

Nothing here evaluates text. An expression is read into a tree (`expressions`) and worked out within
bounds of time and memory (`evaluator`), numbers without variables exactly (`values`). An answer
that cannot be read, or is too large, is right only where it is the ground truth's own text.
"""

from sppo_ray.rewards.math.verifier import answer, make_math_verifier, try_truth, verify_math

__all__ = ["answer", "make_math_verifier", "try_truth", "verify_math"]

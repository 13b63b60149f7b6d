from __future__ import annotations

from typing import Any

import numpy as np

from sppo_ray.launch.run_inputs import decoder


class FakeTokenizer:
    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        assert isinstance(ids, np.ndarray), "Transformers walks a list token by token"
        return " ".join(map(str, ids.tolist()))


def test_responses_are_decoded_as_arrays() -> None:
    rows = [np.array([1, 2], dtype=np.int32), np.empty(0, np.int32)]
    assert decoder(FakeTokenizer())(rows) == ["1 2", ""]

"""The class that wins at a pixel."""

from __future__ import annotations

import math

import pytest
import torch

from harness.nn.choice import best_class


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_best_class_is_that_of_argmax_ties_and_infinite_scores_included(dtype):
    torch.manual_seed(0)
    scores = torch.randint(0, 3, (3, 5, 7, 9)).to(dtype)  # ties nearly everywhere
    scores[0, :, 0] = 1.0
    scores[1, 1:3] = -math.inf
    scores[2, :, 4, 4] = -math.inf
    scores[2, 3, 5] = math.inf
    torch.testing.assert_close(best_class(scores), scores.argmax(1))
    strided = torch.randn(2, 9, 8, 4).to(dtype).permute(0, 2, 3, 1)
    torch.testing.assert_close(best_class(strided), strided.argmax(1))

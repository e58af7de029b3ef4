"""R11: 12 degenerate predictors on 4 tasks are flagged and 30 healthy runs are not; the cases are the evaluation tests' own."""

import random
from typing import Any

from tests.evaluation.garbage import DEGENERATE, STYLES, evaluated, healthy, tasks
from tests.evaluation.test_garbage import SHARES


def test_degenerate_predictors_are_flagged_and_healthy_ones_are_not(figure: Any) -> None:
    flagged = [
        bool(evaluated(task, predictor(task, random.Random(name))).marks)
        for task in tasks()
        for name, (_, predictor) in DEGENERATE.items()
    ]
    clean = [
        not evaluated(task, healthy(task, style, share=share, chance=random.Random(number))).marks
        for task in tasks()
        for number, style in enumerate(STYLES[task.kind])
        for share in SHARES
    ]
    assert (len(flagged), len(clean)) == (48, 30)
    figure("R11", sum(flagged) + sum(clean), 78)

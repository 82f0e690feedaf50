"""One replica, request by request and step by step: the obvious simulation, and the oracle of `simulator.py`.

Requests come one by one, wait for a slot, prefill whole prompts in steps beside the rows that decode, and leave when
their tokens are written. Nothing is averaged; it is slow.
"""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestration.allocator.service import StepTimes


def first_token_s(
    times_s: NDArray[np.float64],
    prompts: NDArray[Any],
    outputs: NDArray[Any],
    steps: StepTimes,
    *,
    tokens_per_step: int = 4096,
) -> NDArray[np.float64]:
    """Return the time to the first token of each request; `prompts` are the tokens that must be computed."""
    waiting: deque[int] = deque()
    running: dict[int, float] = {}
    first = np.zeros(len(times_s))
    now, coming = 0.0, 0
    while coming < len(times_s) or waiting or running:
        while coming < len(times_s) and times_s[coming] <= now:
            waiting.append(coming)
            coming += 1
        if not waiting and not running:
            now = float(times_s[coming])
            continue
        prefilled, tokens = list[int](), 0.0
        while waiting and len(running) + len(prefilled) < steps.num_slots:
            if prefilled and tokens + prompts[waiting[0]] > tokens_per_step:
                break
            number = waiting.popleft()
            prefilled.append(number)
            tokens += prompts[number]
        now += steps.base_s + steps.row_s * len(running) + steps.token_s * tokens
        for number in list(running):
            running[number] -= 1
            if running[number] <= 0:
                del running[number]
        for number in prefilled:
            first[number] = now - times_s[number] + steps.overhead_s
            if outputs[number] > 1:
                running[number] = float(outputs[number]) - 1
    return first

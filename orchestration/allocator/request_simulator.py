"""One replica, request by request and step by step: the obvious simulation, and the oracle of `simulator.py`.

Requests come one by one, wait for a slot, and prefill as the engine's scheduler lets them: one prompt at a time, in
chunks, smaller ones beside rows that decode. They leave when their tokens are written. Nothing is averaged; it is slow.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestration.allocator.service import StepTimes


class Course(NamedTuple):
    """What became of requests: [requests] seconds since each one's arrival, and the work that was done until then.

    Work is counted from the beginning of the run, [requests, 4]: steps, and in them rows, prompt tokens, and pairs of a
    prompt token and one before it.
    """

    first_s: NDArray[np.float64]
    """To its first token."""
    end_s: NDArray[np.float64]
    first_work: NDArray[np.float64]
    end_work: NDArray[np.float64]


def follow(times_s: ArrayLike, prompts: ArrayLike, outputs: ArrayLike, steps: StepTimes) -> Course:
    """Follow requests that come at ascending times; `prompts` are the tokens that must be computed."""
    times, prompt, output = (np.asarray(values, np.float64) for values in (times_s, prompts, outputs))
    prompt, output = np.maximum(prompt, 1), np.maximum(output, 1)
    waiting: deque[int] = deque()
    prefilling: dict[int, float] = {}
    """Prompt tokens left, of the longest-waiting first."""
    decoding: dict[int, float] = {}
    """Tokens left."""
    course = Course(*(np.zeros((len(times), *shape)) for shape in ((), (), (4,), (4,))))
    now, coming = 0.0, 0
    num_steps, num_rows, num_tokens, num_pairs = 0, 0, 0.0, 0.0
    while coming < len(times) or waiting or prefilling or decoding:
        while coming < len(times) and times[coming] <= now:
            waiting.append(coming)
            coming += 1
        if not (waiting or prefilling or decoding):
            now = float(times[coming])
            continue
        while waiting and len(prefilling) + len(decoding) < steps.num_slots:
            number = waiting.popleft()
            prefilling[number] = prompt[number]
        chosen = next(iter(prefilling), None)
        chunk = pairs = 0.0
        if chosen is not None:
            chunk = min(prefilling[chosen], steps.beside_tokens if decoding else steps.chunk_tokens)
            pairs = chunk * (prompt[chosen] - prefilling[chosen] + chunk / 2)
        now += steps.base_s + steps.row_s * len(decoding) + steps.token_s * chunk + steps.pair_s * pairs
        num_steps, num_rows = num_steps + 1, num_rows + len(decoding)
        num_tokens, num_pairs = num_tokens + chunk, num_pairs + pairs
        work = num_steps, num_rows, num_tokens, num_pairs
        written = list(decoding)
        if chosen is not None:
            prefilling[chosen] -= chunk
            if prefilling[chosen] <= 0:
                del prefilling[chosen]
                decoding[chosen] = output[chosen]
                written.append(chosen)
                course.first_s[chosen], course.first_work[chosen] = now - times[chosen] + steps.overhead_s, work
        for number in written:
            decoding[number] -= 1
            if decoding[number] <= 0:
                del decoding[number]
                course.end_s[number], course.end_work[number] = now - times[number] + steps.overhead_s, work
    return course

"""Time two functions in turn: A, B, A, B, ..."""

import statistics
import time
from collections.abc import Callable

WARM_UP = 3


def format_row(name: str, first: Callable[[], object], second: Callable[[], object], rounds: int) -> str:
    """Time both functions, and return a row of a Markdown table.

    Its cells are the name, the median milliseconds of each function, and the ratios second / first of the rounds: the
    median, and the lowest and highest one. Three more rounds come first, as warm-up.
    """
    times: list[list[float]] = [[], []]
    for _ in range(WARM_UP + rounds):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    a, b = (seconds[WARM_UP:] for seconds in times)
    ratios = [later / earlier for earlier, later in zip(a, b, strict=True)]
    return (
        f"| {name} | {1e3 * statistics.median(a):.2f} | {1e3 * statistics.median(b):.2f} "
        f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}, {max(ratios):.2f} |"
    )

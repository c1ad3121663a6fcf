"""Classify image files in batches; threads decode the next batches while the network computes."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vision.pipeline.validation import has_control_characters
from vision.prediction.predictor import BATCH_SIZE, Predictor

_THREAD_CHUNK = 16  # files per task of a thread
_BATCHES_AHEAD = 2  # batches that are decoded while the network computes one


@dataclass(frozen=True)
class Batch:
    """The predictions of consecutive files.

    Attributes:
        end: how many files of the list are done after this batch.
        images: the n files that could be read.
        probabilities: float32 [n, classes].
        errors: why the others could not be read, by file.
    """

    end: int
    images: list[str]
    probabilities: np.ndarray
    errors: dict[str, str]


def predict_files(
    predictor: Predictor, files: Sequence[str], start: int = 0, on_read: Callable[[int], object] = lambda count: None
) -> Iterator[Batch]:
    """Classify files in order.

    Each batch has `BATCH_SIZE` files, counted from the start of the list. So whatever `start` is, an image is in the
    same batch, and its probabilities have the same bits.

    Args:
        predictor: the model.
        files: paths of image files.
        start: the first file to classify, a multiple of `BATCH_SIZE`.
        on_read: called with the number of files each time that some were decoded.
    """

    def read_chunk(chunk: Sequence[str]) -> list[np.ndarray | str]:
        return [_read(predictor, file) for file in chunk]

    def submit(begin: int) -> list[Future[list[np.ndarray | str]]]:
        batch = files[begin : begin + BATCH_SIZE]
        return [pool.submit(read_chunk, batch[i : i + _THREAD_CHUNK]) for i in range(0, len(batch), _THREAD_CHUNK)]

    with (
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),  # `decode` refuses them
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        begins = range(start, len(files), BATCH_SIZE)
        queue = deque(submit(begin) for begin in begins[:_BATCHES_AHEAD])
        try:
            for number, begin in enumerate(begins):
                if number + _BATCHES_AHEAD < len(begins):
                    queue.append(submit(begins[number + _BATCHES_AHEAD]))
                results: list[np.ndarray | str] = []
                for future in queue.popleft():
                    chunk = future.result()
                    results += chunk
                    on_read(len(chunk))
                yield _predict_batch(predictor, files[begin : begin + BATCH_SIZE], begin, results)
        finally:
            pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C waits for all tasks that have not started


def _read(predictor: Predictor, file: str) -> np.ndarray | str:
    """Read a file; returns its pixels, uint8 [H, W, 3], or why it cannot be read."""
    path = Path(file)
    if has_control_characters(file):
        return "the name has control characters or is not UTF-8; rename it"
    try:
        if not path.is_file():  # reading a pipe would block
            return "a special file" if path.exists() else "no such file"
        return predictor.read_pixels(path.read_bytes())
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)


def _predict_batch(
    predictor: Predictor, files: Sequence[str], begin: int, results: Sequence[np.ndarray | str]
) -> Batch:
    images = [file for file, result in zip(files, results, strict=True) if not isinstance(result, str)]
    errors = {file: result for file, result in zip(files, results, strict=True) if isinstance(result, str)}
    pixels = [result for result in results if not isinstance(result, str)]
    probabilities = predictor.predict(np.stack(pixels)) if pixels else np.empty((0, len(predictor.classes)), np.float32)
    return Batch(begin + len(files), images, probabilities, errors)

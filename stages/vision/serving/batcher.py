"""Dynamic batching: images that arrive while the network is busy form its next batch.

A lone request does not wait for others. Under load the batches grow by themselves.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

import numpy as np

from vision.prediction.predictor import Predictor
from vision.serving.errors import OverloadedError

BATCH_SIZES = (64, 32, 16, 8, 4, 2, 1)
"""The network sees only these batch sizes, because oneDNN compiles its kernels anew for each size and keeps them."""
MAX_IMAGES = 1024
"""Images in the server at a time, from their decoding to their answer."""
MIN_BATCH = 16
"""Images that the network waits for, while others are being decoded."""
WAIT_SECONDS = 0.02
"""The longest time that it waits for them."""


@dataclass(frozen=True)
class _Item:
    predictor: Predictor
    pixels: np.ndarray
    result: asyncio.Future[np.ndarray]


class Batcher:
    """Runs the network in a thread of its own, batch by batch, in the order of arrival.

    Use it as an asynchronous context manager; all methods are called in the event loop.
    """

    def __init__(self, on_batch: Callable[[int], object] = lambda size: None, max_images: int = MAX_IMAGES) -> None:
        """Call `on_batch` with the size of each batch; accept at most `max_images` at a time."""
        self._on_batch = on_batch
        self._max_images = max_images
        self._num_images = 0
        self._num_expected = 0
        self._queue: deque[_Item] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")

    async def __aenter__(self) -> Self:
        """Start to take images."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; nothing may wait for a result any more."""
        self._task.cancel()
        self._thread.shutdown()

    @contextmanager
    def reserve(self, count: int) -> Iterator["Reservation"]:
        """Count images as being in the server for the block, which predicts them at most once.

        Raises:
            OverloadedError: the server has too many. One request alone is always accepted.
        """
        if self._num_images and self._num_images + count > self._max_images:
            raise OverloadedError
        reservation = Reservation(self, count)
        self._num_images += count
        self._num_expected += count
        try:
            yield reservation
        finally:
            reservation.arrive()
            self._num_images -= count

    def _put(self, items: Sequence[_Item]) -> None:
        self._queue.extend(items)
        self._changed.set()

    def _arrive(self, count: int) -> None:
        self._num_expected -= count
        self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._wait_for_images()
            await self._run_batch(self._next_batch())

    async def _wait_for_images(self) -> None:
        """Wait for an image, and a little for more of them if they are being decoded.

        Photos are decoded one by one, so without this the network would get most of them one by one too.
        """
        while not self._queue:
            self._changed.clear()
            await self._changed.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                while self._num_expected and len(self._queue) < MIN_BATCH:
                    self._changed.clear()
                    await self._changed.wait()

    def _next_batch(self) -> list[_Item]:
        """Take images of one model from the queue; after a replacement, older images still go to the older model."""
        predictor, count = self._queue[0].predictor, 0
        for item in self._queue:
            if item.predictor is not predictor or count == BATCH_SIZES[0]:
                break
            count += 1
        size = next(size for size in BATCH_SIZES if size <= count)
        return [self._queue.popleft() for _ in range(size)]

    async def _run_batch(self, batch: Sequence[_Item]) -> None:
        pixels = np.stack([item.pixels for item in batch])
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._thread, batch[0].predictor.predict, pixels)
        except Exception as error:  # the requests of this batch fail; the next batch may be fine
            for item in batch:
                if not item.result.done():
                    item.result.set_exception(error)
            return
        self._on_batch(len(batch))
        for item, row in zip(batch, rows, strict=True):
            if not item.result.done():  # it is, if the request was cancelled
                item.result.set_result(row)


class Reservation:
    """Images of one request that the server has accepted; see `Batcher.reserve`."""

    def __init__(self, batcher: Batcher, count: int) -> None:
        """Expect `count` images."""
        self._batcher = batcher
        self._num_expected = count

    async def predict(self, predictor: Predictor, images: Sequence[np.ndarray]) -> np.ndarray:
        """Compute the probabilities, float32 [N, classes], of at least one image, uint8 [H, W, 3] each."""
        loop = asyncio.get_running_loop()
        items = [_Item(predictor, pixels, loop.create_future()) for pixels in images]
        self._batcher._put(items)
        self.arrive()
        return np.stack(await asyncio.gather(*(item.result for item in items)))

    def arrive(self) -> None:
        """Expect no more images."""
        self._batcher._arrive(self._num_expected)
        self._num_expected = 0


def warm_up(predictor: Predictor) -> None:
    """Predict a batch of each size, so that no request waits for oneDNN's compiler."""
    for size in BATCH_SIZES:
        predictor.predict(np.zeros((size, *predictor.image_size, 3), np.uint8))

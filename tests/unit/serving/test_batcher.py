import asyncio
import threading
from typing import Any, cast

import numpy as np
import pytest

from serve_process import save_small_model
from vision.prediction.predictor import Predictor, find_model, load_predictor
from vision.serving.batcher import BATCH_SIZES, WAIT_SECONDS, Batcher
from vision.serving.errors import OverloadedError

IMAGES = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load_predictor(find_model(str(save_small_model(tmp_path_factory.mktemp("model") / "models"))))


class Gate:
    """A predictor that waits until it may go on, and notes its batches."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.batches: list[int] = []
        self.open = threading.Event()

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        assert self.open.wait(30)
        return self.predictor.predict(pixels)


async def predict(batcher: Batcher, predictor: Any, images: np.ndarray) -> np.ndarray:
    with batcher.reserve(len(images)) as reservation:
        return await reservation.predict(predictor, list(images))


def test_images_that_arrive_while_the_network_is_busy_form_the_next_batches(predictor: Predictor) -> None:
    gate, sizes = Gate(predictor), list[int]()

    async def run() -> list[np.ndarray]:
        async with Batcher(sizes.append) as batcher:
            first = asyncio.create_task(predict(batcher, gate, IMAGES[:1]))
            while not gate.batches:
                await asyncio.sleep(0.001)
            others = [asyncio.create_task(predict(batcher, gate, IMAGES[i : i + 1])) for i in range(1, 100)]
            await asyncio.sleep(0.1)
            gate.open.set()
            return await asyncio.gather(first, *others)

    rows = np.concatenate(asyncio.run(run()))
    assert gate.batches == sizes == [1, 64, 32, 2, 1]
    np.testing.assert_allclose(rows, predictor.predict(IMAGES[:100]), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 200])
def test_a_request_of_any_size_has_the_same_answers(predictor: Predictor, count: int) -> None:
    async def run() -> np.ndarray:
        async with Batcher() as batcher:
            return await predict(batcher, predictor, IMAGES[:count])

    alone = np.concatenate([predictor.predict(image[None]) for image in IMAGES[:count]])
    np.testing.assert_allclose(asyncio.run(run()), alone, atol=1e-6)


def test_the_network_waits_for_images_that_are_being_decoded_but_not_long(predictor: Predictor) -> None:
    gate = Gate(predictor)
    gate.open.set()

    async def run() -> list[float]:
        loop, times = asyncio.get_running_loop(), []
        async with Batcher() as batcher:
            for pause in (WAIT_SECONDS / 4, WAIT_SECONDS * 10):
                with batcher.reserve(1) as late:
                    started = loop.time()
                    first = asyncio.create_task(predict(batcher, gate, IMAGES[:1]))
                    await asyncio.sleep(pause)
                    await asyncio.gather(first, late.predict(cast(Predictor, gate), list(IMAGES[1:2])))
                    times.append(loop.time() - started)
        return times

    asyncio.run(run())
    assert gate.batches == [2, 1, 1]


def test_a_lone_request_does_not_wait(predictor: Predictor) -> None:
    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        times = []
        async with Batcher() as batcher:
            for _ in range(20):
                started = loop.time()
                await predict(batcher, predictor, IMAGES[:1])
                times.append(loop.time() - started)
        return times

    assert min(asyncio.run(run())) < WAIT_SECONDS / 2


def test_too_many_images_are_refused_and_the_others_are_answered(predictor: Predictor) -> None:
    async def run() -> None:
        async with Batcher(max_images=4) as batcher:
            with batcher.reserve(3) as reservation:
                with pytest.raises(OverloadedError) as error, batcher.reserve(2):
                    pass
                assert error.value.status == 503
                assert len(await reservation.predict(predictor, list(IMAGES[:3]))) == 3
            assert len(await predict(batcher, predictor, IMAGES[:5])) == 5  # alone, so it is not too much

    asyncio.run(run())


def test_a_failed_batch_fails_its_requests_only(predictor: Predictor) -> None:
    class Broken:
        def predict(self, pixels: np.ndarray) -> np.ndarray:
            raise RuntimeError("out of memory")

    async def run() -> None:
        async with Batcher() as batcher:
            with pytest.raises(RuntimeError, match="out of memory"):
                await predict(batcher, Broken(), IMAGES[:2])
            assert len(await predict(batcher, predictor, IMAGES[:2])) == 2

    asyncio.run(run())


def test_images_of_two_models_are_never_in_one_batch(predictor: Predictor) -> None:
    old, new = Gate(predictor), Gate(predictor)
    new.open.set()

    async def run() -> None:
        async with Batcher() as batcher:
            tasks = [asyncio.create_task(predict(batcher, old, IMAGES[:1]))]
            while not old.batches:
                await asyncio.sleep(0.001)
            tasks += [asyncio.create_task(predict(batcher, gate, IMAGES[:1])) for gate in (old, old, new, new)]
            await asyncio.sleep(0.05)
            old.open.set()
            await asyncio.gather(*tasks)

    asyncio.run(run())
    assert (old.batches, new.batches) == ([1, 2], [2])


def test_sizes_of_batches_fall_to_one() -> None:
    assert list(BATCH_SIZES) == sorted(BATCH_SIZES, reverse=True)
    assert BATCH_SIZES[-1] == 1

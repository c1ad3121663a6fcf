"""The model that is served, and its replacement when the registry's alias moves to another version."""

import logging
import threading
from collections.abc import Callable

from vision.pipeline.errors import UserError
from vision.prediction.onnx_runtime import to_onnx_runtime
from vision.prediction.predictor import ModelSource, Predictor, find_model, load_predictor
from vision.serving.batcher import warm_up

logger = logging.getLogger(__name__)


class ServedModel:
    """A model that is replaced while it is in use.

    Who uses it takes `predictor` once per request and keeps it until the answer. A replacement therefore interrupts
    nothing: requests that have begun end with the model that they began with.

    Attributes:
        predictor: the model now.
        error: why the registry or its newest model could not be used at the last attempt; None if all is well.
    """

    def __init__(
        self, model: str, poll_seconds: float, on_load: Callable[[Predictor], object] = lambda predictor: None
    ) -> None:
        """Load a model, and call `on_load` with it and with each later one.

        Args:
            model: as `find_model` takes it.
            poll_seconds: between two questions to the registry.
            on_load: called in the thread that loads.

        Raises:
            UserError: the model cannot be loaded.
        """
        self.model = model
        self.error: str | None = None
        self._poll_seconds = poll_seconds
        self._on_load = on_load
        self._stopped = threading.Event()
        self.predictor = _load(find_model(model))
        on_load(self.predictor)

    def start_polling(self) -> None:
        """Ask the registry for the version now and then, in a thread, if the model is given by an alias."""
        if self.model.startswith("models:/") and "@" in self.model:
            threading.Thread(target=self._poll, name="registry", daemon=True).start()

    def stop_polling(self) -> None:
        """Ask no more. A model that is being loaded is not waited for."""
        self._stopped.set()

    def update(self) -> None:
        """Load the model if the alias has moved; if that fails, keep the present one and note why in `error`."""
        try:
            source = find_model(self.model)
            if source != self.predictor.source:
                self.predictor = _load(source)
                self._on_load(self.predictor)
                logger.info("%s is now version %s", self.model, source.version)
            self.error = None
        except Exception as error:  # whatever it is, the present model still works
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            message = f"{self.model} cannot be updated, version {self.predictor.source.version} stays ({reason})"
            if message != self.error:  # say it once, not every ten seconds
                logger.warning("%s", message)
            self.error = message

    def _poll(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            self.update()


def _load(source: ModelSource) -> Predictor:
    """Load a model, in ONNX Runtime if that computes the same: on a CPU it is the fastest for single images."""
    predictor = to_onnx_runtime(load_predictor(source))
    warm_up(predictor)
    return predictor

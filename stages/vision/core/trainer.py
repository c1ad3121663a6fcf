"""A training step, and all state that it changes."""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from vision.core.augment.pipeline import Augmentation
from vision.core.config import TrainConfig
from vision.core.convolution import WeightGradientMode
from vision.core.data import Batch, ImageDataset
from vision.core.inference import autocast
from vision.core.kernels import select_kernels
from vision.core.optim.ema import ModelEMA
from vision.core.optim.optimizers import build_optimizers
from vision.core.optim.schedules import build_schedule

State = dict[str, Any]
"""Numbers, strings and tensors in lists and dictionaries, which torch.load reads with `weights_only=True`."""


class Trainer:
    """Trains a model step by step.

    Attributes:
        eval_model: the model to validate and to keep: the trained one, or the moving average of its weights.
        augmentation: how training batches are augmented.
        generator: the source of all random numbers except those of the model itself, such as dropout.
    """

    def __init__(self, model: nn.Module, train: ImageDataset, config: TrainConfig, steps: int) -> None:
        """Prepare a training.

        Args:
            model: maps images [B, H, W, C] to logits [B, classes], on the device of the images. It is trained in place.
            train: the training split.
            config: how to train.
            steps: of the whole training, for the learning-rate schedule.
        """
        self.model, self.config = model, config
        self.device = train.images.device
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.augmentation = Augmentation(config.augment, train.images, self.generator)
        self.optimizers = build_optimizers(model, config.optimizer, config.lr, config.dtype)
        schedules = (build_schedule(optimizer, config.schedule, steps, config.warmup) for optimizer in self.optimizers)
        self.schedules = [schedule for schedule in schedules if schedule is not None]
        self.trainable_params = [param for param in model.parameters() if param.requires_grad]
        self.ema = None if config.ema_decay is None else ModelEMA(model, config.ema_decay)
        self.eval_model = model if self.ema is None else self.ema.model
        self.hard_mining = min(config.hard_example_fraction) < 1
        self.class_weights = balanced_weights(train.labels) if config.class_weights == "balanced" else None
        self.logit_offsets = config.logit_adjustment * log_shares(train.labels) if config.logit_adjustment else None
        self.losses = torch.full((len(train.labels),), math.inf, device=self.device)  # of each image when last seen
        method = select_kernels(model, config, self.device).weight_gradient
        self._forward_context: AbstractContextManager[object] = WeightGradientMode(method) if method else nullcontext()
        # Validation and the state dict use `model` itself, whose parameters the compiled function shares.
        self._forward = torch.compile(model, mode=config.compile, dynamic=False) if config.compile else model
        # Small gradients underflow in float16 without a scale. bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == torch.float16)
        # Expected where the first step of an optimizer is skipped: its gradients overflow, or its layers are frozen.
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`")

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizers[0].param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Set the mode and the trainable parameters of `epoch` (from 1).

        In the first `config.freeze_epochs` only the head is trained, and batch normalization does not update its
        statistics.
        """
        self.model.train()
        frozen = epoch <= self.config.freeze_epochs
        for param in self.trainable_params:
            param.requires_grad_(not frozen)
        if frozen:
            for param in cast(nn.Module, self.model.head).parameters():
                param.requires_grad_(True)
            for module in self.model.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                    module.eval()

    def hardest_indices(self, count: int) -> Tensor:
        """Return the indices, int64 [count], of the images with the highest loss when they were last seen."""
        return self.losses.topk(count).indices

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Train on a batch.

        Returns:
            The mean loss, a scalar, and the logits [B, classes], both from before the update.
        """
        if self.config.compile:
            torch.compiler.cudagraph_mark_step_begin()  # the logits of the step before may be overwritten
        with autocast(self.device, self.config.dtype), self._forward_context:
            logits = self._forward(batch.images)
        losses = self._cross_entropy(logits, batch)
        loss = self._weight_by_class(losses, batch).mean()
        self.scaler.scale(loss).backward()
        if self.hard_mining:
            self.losses[batch.indices] = losses.detach()
        self._update_weights()
        return loss, logits

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each image, float32 [B]; that of a mixed image is weighted over both labels."""
        if self.logit_offsets is not None:
            logits = logits + self.logit_offsets
        smoothing = self.config.label_smoothing
        losses = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")
        if batch.other_labels is None or batch.weights is None:
            return losses
        other_losses = F.cross_entropy(logits, batch.other_labels, label_smoothing=smoothing, reduction="none")
        return batch.weights * losses + (1 - batch.weights) * other_losses

    def _weight_by_class(self, losses: Tensor, batch: Batch) -> Tensor:
        """Multiply the losses [B] by the weights of the images' classes; those of mixed images by a mixture."""
        if self.class_weights is None:
            return losses
        weights = self.class_weights[batch.labels]
        if batch.other_labels is not None and batch.weights is not None:
            weights = batch.weights * weights + (1 - batch.weights) * self.class_weights[batch.other_labels]
        return weights * losses

    def _update_weights(self) -> None:
        optimizers = [optimizer for optimizer in self.optimizers if _has_gradients(optimizer)]  # not those frozen
        if self.config.clip_grad_norm is not None:
            for optimizer in optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.trainable_params, self.config.clip_grad_norm)
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        for param in self.trainable_params:
            param.grad = None
        for schedule in self.schedules:
            schedule.step()
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()

    def state_dict(self) -> State:
        """Return everything that a step changes. The tensors are the ones that the next step overwrites."""
        return {
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
            "losses": self.losses,
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "device_rng": None if self.device.type == "cpu" else torch.get_device_module(self.device).get_rng_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned, for the same configuration. Tensors may be on any device."""
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.losses.copy_(state["losses"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["device_rng"])

    def _parts(self) -> dict[str, Any]:
        """Return all objects that have a state dict."""
        parts = {"model": self.model, "augmentation": self.augmentation, "scaler": self.scaler}
        # Optimizers come before schedules, which share their learning rates.
        parts |= {f"optimizer_{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        parts |= {f"schedule_{i}": schedule for i, schedule in enumerate(self.schedules)}
        return parts if self.ema is None else parts | {"ema": self.ema}


def balanced_weights(labels: Tensor) -> Tensor:
    """Return a weight for each class, float32 [classes], inversely proportional to its number of images.

    The mean over the images is 1, as for `class_weight="balanced"` in scikit-learn. A class without images gets 0.

    Args:
        labels: int64 [N], of the training split.
    """
    counts = labels.bincount()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def log_shares(labels: Tensor) -> Tensor:
    """Return the logarithm of each class's share of the images, float32 [classes].

    Added to the logits in the loss, it makes the network learn what speaks for a class besides its frequency (Menon et
    al. 2021, "Long-tail learning via logit adjustment", arXiv:2007.07314).

    Args:
        labels: int64 [N], of the training split; each class has an image.
    """
    return (labels.bincount() / len(labels)).log()


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(param.grad is not None for group in optimizer.param_groups for param in group["params"])

"""A step of training, and all that changes with it: the state that training can go on from."""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from vision.core.amx_convolution import fast_convolutions
from vision.core.augment.color_jitter import ColorJitter
from vision.core.augment.crop_flip import RandomCropFlip
from vision.core.augment.cutout import Cutout
from vision.core.augment.mixup import Mix
from vision.core.augment.rotate import Rotate
from vision.core.config import TrainConfig
from vision.core.data import Batch, ImageDataset
from vision.core.inference import autocast
from vision.core.optim.ema import ModelEMA
from vision.core.optim.optimizers import build_optimizers
from vision.core.optim.schedules import build_schedule

State = dict[str, Any]
"""Numbers, text and tensors, in lists and dictionaries: what torch.load reads back with `weights_only`."""


class Trainer:
    """A network that learns. `kept` is what is validated and kept of it: itself, or the average of its weights."""

    def __init__(self, model: nn.Module, train: ImageDataset, config: TrainConfig, steps: int) -> None:
        """Train `model` on images of `train` for so many steps in all."""
        self.model, self.config = model, config
        self.device = train.images.device
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.augment = RandomCropFlip(
            config.augment.flip, config.augment.crop_padding, len(train.labels), self.generator
        )
        self.rotate = Rotate(config.augment.rotation, self.generator)
        self.jitter = ColorJitter(config.augment.color_jitter, self.generator)
        self.cutout = Cutout(config.augment.cutout, train.images, self.generator)
        self.mix = Mix(config.augment.mixup, config.augment.cutmix, self.generator)
        self.optimizers = build_optimizers(model, config.optimizer, config.lr, config.dtype)
        planned = (build_schedule(made, config.schedule, steps, config.warmup) for made in self.optimizers)
        self.schedules = [going for going in planned if going]
        self.convolutions: AbstractContextManager[object] = nullcontext()
        if config.amx_convolution == "auto":
            self.convolutions = fast_convolutions(model, config.batch_size, self.device, config.dtype)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.average = None if config.ema_decay is None else ModelEMA(model, config.ema_decay)
        self.kept = model if self.average is None else self.average.model
        # Half-precision gradients of small values vanish without a scale; bf16 has the range of fp32 and needs none.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == torch.float16)
        # The scaler leaves out steps whose gradients overflow, the first one perhaps; the schedule goes on all the
        # same.
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`")
        self.selecting = min(config.hard_example_fraction) < 1
        self.losses = torch.full((len(train.labels),), math.inf, device=self.device)  # of each image when last seen

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizers[0].param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Train the head alone, or everything. Frozen layers do not learn statistics either."""
        self.model.train()
        frozen = epoch <= self.config.freeze_epochs
        for p in self.trained:
            p.requires_grad_(not frozen)
        if frozen:
            for p in cast(nn.Module, self.model.head).parameters():
                p.requires_grad_(True)
            for module in self.model.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                    module.eval()

    def augmented(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Vary images [N, H, W, C] that are numbered [N] in the data set."""
        return self.cutout(self.jitter(self.rotate(self.augment(images, numbers))))

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Learn from a batch, and give its mean loss and its logits."""
        smoothing, clip_norm = self.config.label_smoothing, self.config.clip_grad_norm
        images, others, weights = self.mix(batch.images, batch.labels)
        with autocast(self.device, self.config.dtype), self.convolutions:
            logits = self.model(images)
        each = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")
        if weights is not None:
            of_others = F.cross_entropy(logits, others, label_smoothing=smoothing, reduction="none")
            each = weights * each + (1 - weights) * of_others
        loss = each.mean()
        self.scaler.scale(loss).backward()
        if self.selecting:
            self.losses[batch.numbers] = each.detach()
        moving = [optimizer for optimizer in self.optimizers if _has_gradients(optimizer)]  # the others are frozen
        if clip_norm is not None:
            for optimizer in moving:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.trained, clip_norm)
        for optimizer in moving:
            self.scaler.step(optimizer)
        for p in self.trained:
            p.grad = None
        for going in self.schedules:
            going.step()
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return loss, logits

    def state(self) -> State:
        """What `load` goes on from; its tensors are those that the next step changes."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "average_steps": self.average.steps if self.average else 0,
            "generators": [generator.get_state() for generator in self._generators()],
            "coins": self.augment.coins,
            "losses": self.losses,
        }

    def load(self, state: State) -> None:
        """Go on from a state of the same settings; its tensors may be on any device, and become this object's own."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.average:
            self.average.steps = state["average_steps"]
        for generator, place in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(place)
        self.augment.coins.copy_(state["coins"])
        self.losses.copy_(state["losses"])

    def _parts(self) -> dict[str, Any]:
        """What has a state dict."""
        parts = {"model": self.model, "scaler": self.scaler} | ({"average": self.kept} if self.average else {})
        # A schedule reads the learning rates of its optimiser, which are the optimiser's to load.
        for name, several in (("optimizer", self.optimizers), ("schedule", self.schedules)):
            parts |= {f"{name}_{number}": part for number, part in enumerate(several)}
        return parts

    def _generators(self) -> list[torch.Generator]:
        """All that numbers are drawn from, torch's own among them, which dropout draws from."""
        made = (self.generator, self.jitter.host, self.mix.host)
        own = [torch.default_generator]
        if self.device.type == "cuda":
            own.append(torch.cuda.default_generators[torch.cuda.current_device()])
        elif self.device.type == "mps":
            own.append(torch.mps._get_default_mps_generator())
        return [generator for generator in made if generator is not None] + own


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])

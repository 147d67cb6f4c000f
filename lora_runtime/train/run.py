"""One run: a pipeline made ready, its layers in training, and the steps that they take.

loop.py says in which order; here is what one step does, and what is on the model meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.errors import TrainingError
from lora_runtime.train.batches import Use, places_of, plan_epoch, steps_of
from lora_runtime.train.config import Config
from lora_runtime.train.encoding import Encoding
from lora_runtime.train.folders import Dataset
from lora_runtime.train.layers import Layers, wrap
from lora_runtime.train.learning import Group, Learner
from lora_runtime.train.loss import add_noise, loss, snr_weights, target
from lora_runtime.train.models import Model, model_of
from lora_runtime.train.new_word import NewWord
from lora_runtime.train.quantised import quantise
from lora_runtime.train.randomness import draw

__all__ = ["PRECISIONS", "Run"]

# By the names that mixed_precision and save_precision have for them.
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS |= {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Run:
    """A model in training. It has its layers until `close`, which leaves the pipeline where it is and in its dtype."""

    def __init__(self, pipe: Any, config: Config, dataset: Dataset, processes: Any) -> None:
        """Put the layers on; TrainingError where model, pictures and numbers do not go together.

        `processes`: accelerate's PartialState, which knows the device and the other processes.
        """
        self.config, self.dataset, self._processes = config, dataset, processes
        self.device: torch.device = processes.device
        self._dtype = torch.float32 if self.device.type == "mps" else PRECISIONS[config.mixed_precision]
        self.model: Model = model_of(pipe)
        self._check_sizes()
        for part in (self.model.denoiser, *self.model.encoders.values(), self.model.autoencoder):
            _move(part, self.device, self._dtype)
        if config.quantize != "no":
            quantise(self.model.denoiser, config.quantize, self.device, self._dtype)
        self.steps = steps_of(dataset, config)
        self.word: NewWord | None = None
        self._layers: Layers = wrap(self.model, config)
        try:
            if config.token_string:
                self.word = NewWord(self.model, config)
                _check_word(config.token_string, dataset)
            self.learner = Learner(self._groups(), config, self.steps, self.device)
            texts_train = config.train_text_encoder or self.word is not None
            self._encoding = Encoding(self.model, config, texts_train=texts_train)
        except BaseException:
            self.close()
            raise

    def _check_sizes(self) -> None:
        step = self.model.step
        for placed in places_of(self.dataset, self.config).values():
            if placed.bucket[0] % step or placed.bucket[1] % step:
                raise TrainingError(
                    f"pictures would be shown at {placed.bucket[0]} × {placed.bucket[1]}, and this model's sides are "
                    f"multiples of {step}: give such a resolution and bucket_reso_steps"
                )

    def _groups(self) -> list[Group]:
        """Return what is trained, each part at its own rate."""
        config = self.config
        rates = {self.model.component: config.unet_lr}
        rates |= dict.fromkeys(self.model.trainable_encoders, config.text_encoder_lr)
        groups: list[Group] = []
        for component, rate in rates.items():
            if parameters := self._layers.parameters(component):
                groups.append((parameters, config.learning_rate if rate is None else rate))
        if self.word is not None:
            rate = config.embedding_lr
            groups.append((self.word.parameters(), config.learning_rate if rate is None else rate))
        return groups

    def groups_of(self, epoch: int) -> list[list[list[Use]]]:
        """Return the batches of an epoch, those of each optimiser's step together."""
        batches, many = plan_epoch(self.dataset, self.config, epoch), self.config.gradient_accumulation_steps
        return [batches[begin : begin + many] for begin in range(0, len(batches), many)]

    def begin(self) -> None:
        """Encode the pictures, and have the modules that are trained keep what their gradients need."""
        self._encoding.prepare([use for batch in plan_epoch(self.dataset, self.config, 0) for use in batch])
        if self.config.gradient_checkpointing:
            _checkpointing(self.model.denoiser, on=True)

    @property
    def problem(self) -> str:
        """Why what was encoded could not be kept on the disk, or ""."""
        return self._encoding.kept.problem

    def step(self, batches: Sequence[Sequence[Use]], number: int) -> float:
        """Take the step `number`, from 0, on its batches; return its loss, the mean of theirs."""
        total = 0.0
        for part, uses in enumerate(batches):
            found = self._loss(uses, number, part) / len(batches)
            self.learner.backward(found)
            total += float(self._sum(found.detach()))
        self.learner.step(self._processes.num_processes)
        return total

    def _loss(self, uses: Sequence[Use], number: int, part: int) -> Tensor:
        """Return this process' part of a batch's loss: the sum over its rows, by the number of all rows."""
        model, config, schedule = self.model, self.config, self.model.schedule
        kind, (width, height) = schedule.kind, uses[0].placed.bucket
        rows = range(self._processes.process_index, len(uses), self._processes.num_processes)
        own = [uses[row] for row in rows] or [uses[0]]  # who has no row computes one that does not count
        moments = torch.stack([self._encoding.moments(use) for use in own])
        shape = (len(uses), moments.shape[1] // 2, height // model.pixels, width // model.pixels)
        drawn = draw(shape, schedule, seed=config.seed, step=number, part=part, noise_offset=config.noise_offset).rows(
            rows or [0]
        )
        levels, times = schedule.levels[drawn.steps], schedule.times[drawn.steps]
        weights = snr_weights(kind, levels, config.min_snr_gamma) / len(uses)
        weights = weights * torch.tensor([use.weight for use in own]) * (1.0 if rows else 0.0)
        latents = model.latents(moments, drawn.sampling)
        wanted = target(kind, latents, drawn.noise, levels).to(self.device)
        noisy = add_noise(kind, latents, drawn.noise, levels).to(self.device, self._dtype)
        with self._autocast():
            texts = self._encoding.texts(own, self.device, self._dtype)
            said = model.predict(noisy, times.to(self.device), texts, own)
        return loss(said, wanted, weights.to(self.device))

    def _sum(self, value: Tensor) -> Tensor:
        if self._processes.num_processes > 1:
            torch.distributed.all_reduce(value)
        return value

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        if self._dtype == torch.float32:
            yield
            return
        with torch.autocast(self.device.type, self._dtype):
            yield

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what a file says of the weights now, or of their running mean where one is kept."""
        with self.learner.averaged():
            word = {} if self.word is None else self.word.tensors(dtype)
            return self._layers.tensors(dtype) | word

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Have the pipeline as it is without what is in training for a `with` block."""
        with ExitStack() as stack:
            if self.config.gradient_checkpointing:
                _checkpointing(self.model.denoiser, on=False)
                stack.callback(_checkpointing, self.model.denoiser, on=True)
            stack.enter_context(self._layers.aside())
            if self.word is not None:
                stack.enter_context(self.word.aside())
            yield

    def close(self) -> None:
        """Take off the layers, and what the training switched on."""
        if self.config.gradient_checkpointing:
            _checkpointing(self.model.denoiser, on=False)
        if self.word is not None:
            self.word.take_off()
        self._layers.take_off()


def _check_word(word: str, dataset: Dataset) -> None:
    if not any(word in picture.caption for picture in dataset.pictures):
        raise TrainingError(f"token_string {word}: no caption has the word, so nothing would be learnt of it")


def _move(part: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a component; one that a library has quantised is where it is."""
    if getattr(part, "quantization_method", None) is None:
        part.to(device)
        if next(part.parameters()).dtype != dtype:
            part.to(dtype)


def _checkpointing(denoiser: Any, *, on: bool) -> None:
    """Have the denoiser compute again what gradients need, rather than keep it; its layers do so only in training."""
    denoiser.train(on)
    if on:
        denoiser.enable_gradient_checkpointing()
    else:
        denoiser.disable_gradient_checkpointing()

"""What the loop does once a step, on one rank: forward, loss over all ranks, backward, AdamW; and what is kept of it.

After open_clip's `train_one_epoch` (open_clip_train/train.py), of which it is the part without precision scaling,
distillation and logging.

Dimensions: B rows of a batch (of one rank), E embedding.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.checkpoint import CheckpointError, Checkpoints
from models.recipe import Recipe, TrainingError

SCALE = "logit_scale"
"""The name of the temperature in open_clip's models, and in ours."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; gains, biases and the temperature without: open_clip's rule."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", SCALE))
            groups[not plain].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if is_decayed else 0.0}
        for is_decayed, parameters in groups.items()
        if parameters
    ]


class Trainee:
    """A model in training, with its optimiser; one of the ranks of the process group, where there is one."""

    def __init__(self, model: nn.Module, recipe: Recipe, device: str) -> None:
        self.losses: list[float] = []
        """Of all steps so far, those before a resume too."""
        self.is_distributed = dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.num_ranks = (dist.get_rank(), dist.get_world_size()) if self.is_distributed else (0, 1)
        if recipe.batch_size % (self.num_ranks * recipe.accumulate):
            raise TrainingError(
                f"wanted a batch that {self.num_ranks} ranks x {recipe.accumulate} parts share equally; "
                f"found {recipe.batch_size}; fix: another batch_size"
            )
        self._recipe, self._device = recipe, torch.device(device)
        self._model = model.to(self._device).train()
        self._optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps
        )
        self._net: nn.Module = DistributedDataParallel(model) if self.is_distributed else model
        several = self.is_distributed
        self._loss = ClipLoss(several, several, rank=self.rank, world_size=self.num_ranks)

    def step(self, images: Tensor, texts: Tensor, lr: float) -> float:
        """One optimiser step on this rank's rows of the batch; the loss of the whole batch, the same on every rank.

        Raises:
            TrainingError: the loss is not finite. The weights are then those of the step before.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        one_part = self._recipe.accumulate == 1
        loss = self._whole(images, texts) if one_part else self._in_parts(images, texts)
        if self._recipe.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.grad_clip_norm)
        self._optimizer.step()
        with torch.no_grad():
            scale: Tensor = getattr(self._model, SCALE)
            scale.clamp_(0, math.log(self._recipe.max_scale))
        self.losses.append(loss)
        return loss

    def _embed(self, net: nn.Module, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 whatever the model multiplies in: with temperatures up to 100, logits in bf16 would be off by .4."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bf16"):
            image_BE, text_BE, scale = net(images, texts)
        return image_BE.float(), text_BE.float(), scale.float()

    def _whole(self, images: Tensor, texts: Tensor) -> float:
        loss = self._loss(*self._embed(self._net, images, texts))
        value = self._finite(loss)
        loss.backward()
        return value

    def _in_parts(self, images: Tensor, texts: Tensor) -> float:
        """The gradient of the whole batch's loss in the memory of a part: every part is run twice.

        Embeddings are first computed without a gradient; then each part is run again with one, beside those of the
        others, as open_clip does. The temperature's gradient is taken once: open_clip adds it up over the parts.
        """
        num_parts = self._recipe.accumulate
        parts = list(zip(images.chunk(num_parts), texts.chunk(num_parts), strict=True))
        with torch.no_grad():
            known = [self._embed(self._model, *part)[:2] for part in parts]
        value = math.nan
        for number, part in enumerate(parts):
            is_last = number == num_parts - 1
            waits = not is_last and isinstance(self._net, DistributedDataParallel)
            with self._net.no_sync() if waits else nullcontext():  # type: ignore[operator]
                *embedded, scale = self._embed(self._net, *part)
                sides = [
                    torch.cat([*(k[side] for k in known[:number]), mine, *(k[side] for k in known[number + 1 :])])
                    for side, mine in enumerate(embedded)
                ]
                loss = self._loss(*sides, scale if is_last else scale.detach())
                value = self._finite(loss) if number == 0 else value
                loss.backward()
        return value

    def _finite(self, loss: Tensor) -> float:
        """The mean over ranks as a number."""
        mean = loss.detach().clone()
        if self.is_distributed:
            dist.all_reduce(mean)
            mean /= self.num_ranks
        if not math.isfinite(value := mean.item()):
            raise TrainingError(
                f"wanted a finite loss; found {value} at step {len(self.losses)} with lr {self._recipe.lr:g}; fix: "
                "train on embeddings with status ok only, lower the learning rate, or set grad_clip_norm"
            )
        return value

    def resume(self, checkpoints: Checkpoints | None) -> int:
        """Steps done: 0, or those of the last whole checkpoint, whose state this rank then has.

        Raises:
            CheckpointError: a checkpoint of another run, or of another number of ranks.
        """
        saved = checkpoints.newest() if checkpoints else None
        if saved is None or checkpoints is None:
            return 0
        if self._key("cpu") not in saved.state or self._key("cpu", self.num_ranks) in saved.state:
            raise CheckpointError(
                f"wanted as many ranks as wrote the checkpoints in {checkpoints.folder}; found {self.num_ranks}"
            )
        self._model.load_state_dict(saved.model)
        state = self._optimizer.state_dict()
        kept = [name.split(".") for name in saved.state if name.startswith("optimizer.")]
        state["state"] = {int(index): {} for _, index, _ in kept}
        for _, index, field in kept:
            state["state"][int(index)][field] = saved.state[f"optimizer.{index}.{field}"]
        self._optimizer.load_state_dict(state)
        torch.set_rng_state(saved.state[self._key("cpu")])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(saved.state[self._key("cuda")], self._device)
        self.losses = saved.state["losses"].tolist()
        checkpoints.say(f"going on after step {saved.step}")
        return saved.step

    def save(self, checkpoints: Checkpoints) -> None:
        """Every rank calls it; rank 0 writes.

        Raises:
            TrainingError: a weight is not finite. The checkpoints before stay.
        """
        if bad := [name for name, weight in self._model.state_dict().items() if not weight.isfinite().all()]:
            raise TrainingError(f"wanted finite weights; found {bad[0]} after step {len(self.losses) - 1}")
        state: dict[str, Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        state |= self._random_states()
        for index, fields in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{field}": value for field, value in fields.items()}
        if self.rank == 0:
            checkpoints.save(len(self.losses), self._model.state_dict(), state)

    def _random_states(self) -> dict[str, Tensor]:
        """Of every rank: dropout goes on where it was."""
        mine = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(self._device)
        if not self.is_distributed:
            return {self._key(kind): state for kind, state in mine.items()}
        found: dict[str, Tensor] = {}
        for kind, state in mine.items():
            there = state.to(self._device)  # nccl moves what is on a device only
            every = [torch.empty_like(there) for _ in range(self.num_ranks)]
            dist.all_gather(every, there)
            found |= {self._key(kind, rank): state.cpu() for rank, state in enumerate(every)}
        return found

    def _key(self, kind: str, rank: int | None = None) -> str:
        return f"random.{kind}.{self.rank if rank is None else rank}"

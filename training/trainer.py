"""The one training loop. It knows neither what it trains nor who launched it.

A task brings a module, batches and a loss; a launcher has brought the ranks together. The module is
sharded over them (`parallel`), and the loss of a rank is its sum times the number of ranks over the
*global* count, so that unequal parts weigh as they should. A step may add up the gradients of
several batches, each of one shape on all ranks. A module may have several parts, each with
optimizers of its own, and one loss whose terms keep to their part.

Everything that a step draws is a function of its position in the data: an interrupted run, started
again, ends bit for bit where the undisturbed one does, and on another number of ranks it sees the
same clips in every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.shards import Batch
from tokenizer.settings import UserError
from training.average import WeightAverage
from training.checkpoint import Checkpoints, check_identity, latest_checkpoint, read_state
from training.data import bucket_table
from training.draws import seed_step
from training.flops import peak_flops
from training.guard import REPORT, Guard
from training.loop_config import TrainingRun
from training.metrics import Metrics
from training.optimizer import forget, learning_rates, make_optimizers, put
from training.owner import Owner
from training.parallel import (
    Skeleton,
    add_up_gradients,
    distribute,
    drop_gathered,
    make_mesh,
    whole,
)
from training.profiling import Profile
from training.ranks import barrier, from_first, rank_and_world_size, summed, together
from training.schedule import learning_rate_factor
from training.signals import Stopping
from training.sums import Sums, memory_bytes
from training.tasks.task import Mean, Moment, Part, Preview, Task
from training.training_state import TrainingState


@dataclass(frozen=True)
class Trained:
    """The end of a run, or where it was asked to stop."""

    step: int
    checkpoint: Path
    is_finished: bool = True


def train(task: Task, run: Path, config: TrainingRun) -> Trained:
    """Trains `task` in the folder `run` up to `trainer.num_steps`, from its latest checkpoint.

    Every rank of a process group calls it. Asked to stop by a signal, all finish the step and save.
    Raises UserError, on every rank, when that checkpoint is of another model, data set or seed or
    damaged, when the ranks do not fit the mesh, when another process trains in that folder, and
    when a step is bad and the guard stops there.
    """
    with Owner(run) as owner, _Loop(task, run, config, owner) as loop:
        return loop.run()


class _Loop:
    """A run on one rank: what it needs, and how far it is."""

    def __init__(self, task: Task, run: Path, config: TrainingRun, owner: Owner) -> None:
        self.task, self.run_folder, self.config, self.owner = task, run, config, owner
        self.rank, self.world_size = rank_and_world_size()
        self.is_first = self.rank == 0
        self.device = next(task.module.parameters()).device
        self.step = self.position = 0
        mesh = together(lambda: make_mesh(config.parallel, self.device))
        # Before anything is read: another process may be about to write its last checkpoint.
        together(lambda: owner.take() if self.is_first and run.exists() else None)
        checkpoint = self._checkpoint()
        if checkpoint is None:
            together(task.begin)
        is_changed = self.world_size > 1 or task.weight_dtype or config.parallel.compile
        self.skeleton = Skeleton(task.module) if is_changed else None
        distribute(task.module, task.blocks, mesh, config.parallel, task.weight_dtype)
        optimizers = [
            each
            for part in task.parts
            for each in make_optimizers(part.module, part.is_matrix, part.optimizer)
        ]
        decay = config.trainer.ema_decay
        average = WeightAverage(task.parts[0].module, decay) if decay else None
        self.state = TrainingState(task.module, optimizers, average)
        self.guard = Guard(config.guard)
        if checkpoint is not None:
            together(lambda: self._restore(checkpoint))
        self.metrics = together(self._begun)
        self.checkpoints = Checkpoints(run, config.trainer)
        if self.metrics is not None:
            self.metrics.say(_told(task, mesh.size(0), mesh.size(1)))
        self.profile = Profile(run, config.trainer, self.is_first)
        self.sums = Sums(self.device)
        is_half = config.trainer.precision == "bfloat16"
        self.peak_flops = peak_flops(self.device, torch.bfloat16 if is_half else torch.float32)

    def run(self) -> Trained:
        trainer = self.config.trainer
        self.task.module.train()
        with Stopping() as stopping, self.task.loader.batches(self.position) as batches:
            is_stopped = False
            while self.step < trainer.num_steps and not is_stopped:
                before = self.step
                with self.profile.step(self.step + 1):
                    is_stopped = self._step(batches, stopping)
                is_due = self.step % trainer.checkpoint_every == 0 or self.step == trainer.num_steps
                if is_stopped or (is_due and self.step > before):
                    self._save()
            self.checkpoints.wait()
        is_finished = self.step == trainer.num_steps
        if is_finished and self.task.has_result:
            with self._whole() as module:
                together(lambda: self._finish(module))
        barrier()
        checkpoint = latest_checkpoint(self.run_folder)
        assert checkpoint is not None
        return Trained(self.step, checkpoint, is_finished)

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """However it ends: a checkpoint that was begun is written."""
        if self.metrics is not None:
            self.metrics.close()
        self.profile.close()
        with nullcontext() if kind is None else suppress(UserError):
            self.checkpoints.close()

    def _step(self, stream: Iterator[Batch], stopping: Stopping) -> bool:
        """One step, which may turn out bad; whether a rank was asked to stop."""
        trainer, task, state = self.config.trainer, self.task, self.state
        started = time.perf_counter()
        several = trainer.batches_per_step
        batches, count, total = self._fetched(lambda: [next(stream) for _ in range(several)])
        waited = time.perf_counter() - started
        seed_step(trainer.seed, self.position, self.rank, self.device)
        kept = self._buffers()
        loss, metrics = self._gradients(batches, total)
        renewed = {key: each for part in task.parts for key, each in part.renewed().items()}
        forget((), renewed)
        norms = [_clipped(part).to(self.device).double() for part in task.parts]
        own = torch.stack([loss, torch.tensor(float(stopping.is_asked), device=self.device)])
        of_all, is_asked, *told = torch.cat([summed(own.double()), torch.stack(norms)]).tolist()
        shapes = " ".join(sorted({each.bucket.name for each in batches}))
        reason = self.guard.verdict(of_all / total, told, shapes)
        position, self.position = self.position, self.position + len(batches)
        if reason is not None:
            is_blamed = not bool(torch.isfinite(loss))
            self.guard.act(self.run_folder, self.step, position, reason, batches, is_blamed)
            self._pass_over(kept)
            return is_asked > 0
        rate = learning_rate_factor(self.config.schedule, self.step, trainer.num_steps)
        forget(state.optimizers, renewed)
        _apply(state.optimizers, rate)
        put(renewed)
        if state.average is not None:
            state.average.update(renewed)
        self.step += 1
        flops = sum(task.flops(each) for each in batches)
        for each in metrics:
            self.sums.add(each)
        self.sums.add_loss(loss)
        self.sums.spent(count, flops, waited, time.perf_counter() - started)
        self._tell(dict(zip(_norm_names(task.parts), told)))
        return is_asked > 0

    def _fetched(self, read: Callable[[], list[Batch]]) -> tuple[list[Batch], int, float]:
        """What is read, and how many units of loss this rank and all ranks have of it.

        UserError on every rank where one of them cannot read its part, or not learn from it.
        """
        failure: Exception | None = None
        batches, count = list[Batch](), 0
        try:
            batches = read()
            count = sum(self.task.count(each) for each in batches)
        except Exception as error:
            failure = error
        votes = torch.tensor([float(count), float(failure is not None)], dtype=torch.float64)
        total, num_failed = summed(votes).tolist()
        if num_failed:
            together(lambda: _raised(failure))
        return batches, count, total

    def _gradients(
        self, batches: Sequence[Batch], total: float
    ) -> tuple[Tensor, list[Mapping[str, Mean]]]:
        """Adds up the gradients of a step; this rank's sum of the loss, and its metrics."""
        trainer = self.config.trainer
        progress = self.step / trainer.num_steps
        parts = [
            (part, Moment(self.position + number, progress))
            for number, batch in enumerate(batches)
            for part in _micro_batches(batch, trainer.micro_batch_size, self.world_size)
        ]
        loss, metrics = torch.zeros((), device=self.device), []
        for number, (part, moment) in enumerate(parts):
            is_last = number == len(parts) - 1
            add_up_gradients(self.task.module, self.config.parallel, is_last)
            losses = self.task.losses(part, moment)
            # Gradients are averaged over the ranks, and wanted as a sum over the global count.
            (losses.loss * (self.world_size / total)).backward()
            loss = loss + losses.loss.detach().float()
            metrics.append(losses.metrics)
        return loss, metrics

    def _tell(self, norms: dict[str, float]) -> None:
        """Metrics, previews and losses of held-out clips, when it is time for them."""
        trainer, done = self.config.trainer, self.step
        is_last = done == trainer.num_steps

        def is_time(every: int) -> bool:
            return every > 0 and (done % every == 0 or is_last)

        is_shown, is_checked = is_time(trainer.preview_every), is_time(trainer.validate_every)
        if not (is_time(trainer.log_every) or is_shown or is_checked):
            return
        values = self.sums.take(self.task.unit)
        if self.peak_flops is not None and "teraflops" in values:
            values["mfu"] = values["teraflops"] * 1e12 / (self.peak_flops * self.world_size)
        values["memory_gib"] = memory_bytes(self.device) / 2**30
        values |= learning_rates(self.state.optimizers)
        values |= norms
        if self.guard.num_bad:
            values["bad_steps"] = self.guard.num_bad
        if is_checked:
            values |= self._held_out()
        shown = self._preview() if is_shown else Preview()
        if self.metrics is not None:
            self.metrics.write(done, values | dict(shown.values), shown.pictures)

    def _held_out(self) -> dict[str, float]:
        """The mean loss of held-out clips with the weights that the run would end with."""
        sums, progress = Sums(self.device), self.step / self.config.trainer.num_steps
        most = self.config.trainer.micro_batch_size
        stream, number = self.task.held_out(), 0
        self.task.module.eval()
        with self._averaged(), torch.no_grad():
            while True:
                batches, count, _ = self._fetched(lambda: list(islice(stream, 1)))
                if not batches:
                    break
                for part in _micro_batches(batches[0], most, self.world_size):
                    losses = self.task.losses(part, Moment(number, progress))
                    sums.add(losses.metrics)
                    sums.add_loss(losses.loss)
                sums.spent(count, 0.0, 0.0, 0.0)
                number += 1
        self.task.module.train()
        return {f"held_out/{name}": value for name, value in sums.means().items()}

    def _finish(self, module: nn.Module | None) -> None:
        if module is not None:
            self.task.finish(module, self.run_folder)

    def _preview(self) -> Preview:
        """What would be seen if the run ended now; only on the first rank."""
        task, run, step = self.task, self.run_folder, self.step
        with self._whole() as module:
            return together(
                lambda: Preview() if module is None else task.preview(module, run, step)
            )

    @contextmanager
    def _whole(self) -> Iterator[nn.Module | None]:
        """The module in one piece with its averaged weights on the first rank, None on others."""
        module = self.task.module
        with self._averaged(), torch.no_grad():
            if self.skeleton is not None:
                yield self.skeleton.filled(module.state_dict())
            else:
                module.eval()
                yield module
                module.train()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With averaged weights, if there are any; nothing stays gathered of them or of others."""
        drop_gathered(self.task.module)
        average = self.state.average
        with nullcontext() if average is None else average.applied():
            yield
            drop_gathered(self.task.module)

    def _save(self) -> None:
        average = self.state.average
        self.checkpoints.save(
            self.step,
            self.state.tensors(),
            {
                "step": self.step,
                "position": self.position,
                "identity": self.task.identity,
                "averaged_steps": 0 if average is None else average.num_updates,
                "guard": self.guard.state(),
                "ranks": self.world_size,
            },
        )

    def _checkpoint(self) -> Path | None:
        """The checkpoint to go on from; UserError when it is another run's."""
        checkpoint = self._latest()
        if checkpoint is not None:
            together(lambda: check_identity(checkpoint, self.task.identity))
        return checkpoint

    def _latest(self) -> Path | None:
        """The checkpoint that the first rank takes for the latest: others may see it later."""
        found = together(lambda: latest_checkpoint(self.run_folder) if self.is_first else None)
        found = from_first(found)
        if found is not None:
            together(lambda: read_state(found))
        return found

    def _begun(self) -> Metrics | None:
        """What the first rank writes before the first step; its metrics."""
        if not self.is_first:
            return None
        self.owner.take()
        self.task.prepare(self.run_folder)
        return Metrics(self.run_folder, self.config.trainer, self.step)

    def _restore(self, checkpoint: Path) -> bool:
        saved = read_state(checkpoint)
        try:
            self.guard.remember(saved["guard"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{checkpoint}: damaged checkpoint ({error})") from None
        self.step, self.position = saved["step"], saved["position"]
        num_steps = self.config.trainer.num_steps
        if self.step > num_steps:
            raise UserError(
                f"{checkpoint}: the run is at step {self.step} already, trainer.num_steps is "
                f"{num_steps}; give a larger one to go on"
            )
        if self.state.restore(checkpoint) and self.state.average is not None:
            self.state.average.num_updates = saved["averaged_steps"]
        return True

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """What the forward pass may change by itself (a codebook), and copies, if steps may be
        skipped."""
        if self.config.guard.action != "skip":
            return []
        return [(each, each.clone()) for each in self.task.module.buffers()]

    def _pass_over(self, kept: Sequence[tuple[Tensor, Tensor]]) -> None:
        """After a bad step: its data is not seen again, and nothing of it is left."""
        for optimizer in self.state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for buffer, before in kept:
            buffer.copy_(before)
        if self.config.guard.action != "roll_back":
            return
        self.checkpoints.wait()
        checkpoint = self._latest()
        if checkpoint is None:
            raise UserError(
                f"{self.run_folder}: nothing to roll back to, the first checkpoint comes after "
                f"step {self.config.trainer.checkpoint_every}; see {self.run_folder / REPORT}"
            )
        position = self.position
        together(lambda: self._restore(checkpoint))
        self.position = position
        self.sums.clear()
        if self.metrics is not None:
            self.metrics.forget_after(self.step)


def _raised(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def _told(task: Task, replicate: int, shard: int) -> str:
    """What begins: the size of the module, the ranks, and what it learns from."""
    count = sum(each.numel() for each in task.module.parameters())
    ranks = "1 rank" if replicate * shard == 1 else f"{replicate} x {shard} ranks"
    return f"{count:,} parameters on {ranks}\n{bucket_table(task.loader.plan())}"


def _micro_batches(batch: Batch, most: int | None, world_size: int) -> list[Batch]:
    """Equal parts of at most `most` clips, as many as on any other rank."""
    largest = -(-batch.global_size // world_size)
    count = -(-largest // (most or largest))
    bounds = [len(batch) * number // count for number in range(count + 1)]
    return [batch.part(*each) for each in zip(bounds, bounds[1:])]


def _clipped(part: Part) -> Tensor:
    """The norm of a part's gradient, which is scaled down to `clip_norm` if longer (0: left)."""
    parameters = [each for each in part.module.parameters() if each.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, part.optimizer.clip_norm or float("inf"))
    return whole(norm)


def _norm_names(parts: Sequence[Part]) -> list[str]:
    return ["gradient_norm", *(f"{part.name}_gradient_norm" for part in parts[1:])]


def _apply(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

"""The rows of an evaluation over several ranks: the same number for each, with the filler rows marked."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from trl.models import unwrap_model_for_generation

from .callbacks import TextProbe
from .config import DepthSFTConfig
from .dataset import prepare_eval
from .rows import REPEATED_COLUMN


class EvaluationRows(torch.utils.data.Dataset):
    """A data set that returns its first rows for indices past its end, marked in `__repeated__`.

    Its length is unchanged, since accelerate and transformers use it to count rows and cut gathered logits.

    Args:
        rows: Anything with a length and rows by index.
    """

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.rows):
            return self.rows[index]
        return {**self.rows[index % len(self.rows)], REPEATED_COLUMN: True}


class FilledSampler(Sampler[int]):
    """The indices of a sampler, then indices past the data set's end up to a multiple of `multiple`.

    They replace accelerate's own padding with first rows, which cannot be told from real ones.

    Args:
        indices: Sampler that yields every row once.
        multiple: Number of rows that all ranks read at a time.
    """

    def __init__(self, indices: Any, multiple: int):
        self.indices, self.multiple = indices, multiple

    def __len__(self) -> int:
        return -(-len(self.indices) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.indices
        yield from range(len(self.indices), len(self))


class EvaluationStream(torch.utils.data.IterableDataset):
    """A stream that continues with its first row, marked in `__repeated__`, up to a multiple of `multiple`.

    Every rank reads all of it and takes its share: shards of unequal length would leave one rank waiting for another.

    Args:
        rows: Stream; each loader worker gets its shards.
        multiple: Number of rows that all ranks read at a time.
    """

    def __init__(self, rows: IterableDataset, multiple: int):
        self.rows, self.multiple = rows, multiple

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that a shuffle depends on."""
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first: dict[str, Any] = {}
        count = 0
        for row in self.rows:
            first = first or row
            count += 1
            yield row
        for _ in range(-count % self.multiple):
            yield {**first, REPEATED_COLUMN: True}


class EvaluationMixin(Trainer):
    """Mixin for an evaluation that counts every row once, on any number of ranks.

    The trainer has `depth_enabled`, `reads_cameras` and `text_probe`.
    """

    args: DepthSFTConfig
    depth_enabled: bool
    reads_cameras: bool
    text_probe: TextProbe | None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as in TRL; data given here is prepared like the trainer's."""
        if self.reads_cameras and not isinstance(eval_dataset, str):
            eval_dataset = prepare_eval(eval_dataset, self.args)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        if self.depth_enabled and not is_training and self._rows_at_once() > 0:
            if isinstance(dataset, torch.utils.data.IterableDataset):
                dataset = EvaluationStream(dataset, self._rows_at_once())
            else:
                dataset = EvaluationRows(self._remove_unused_columns(dataset, description))
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if not isinstance(eval_dataset, EvaluationRows):
            return super()._get_eval_sampler(eval_dataset)
        indices = super()._get_eval_sampler(eval_dataset.rows)
        return FilledSampler(range(len(eval_dataset)) if indices is None else indices, self._rows_at_once())

    def _rows_at_once(self) -> int:
        """Return the rows in one batch over all ranks, which accelerate pads; 0 if there is one rank."""
        if self.accelerator.num_processes == 1 or self.args.dataloader_drop_last:
            return 0
        return self.args.eval_batch_size * (1 if self.accelerator.split_batches else self.accelerator.num_processes)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as in transformers, and add the text probe's numbers to the metrics."""
        output: Any = super().evaluation_loop(*args, **kwargs)
        if self.text_probe is not None:
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                training = model.training
                numbers = self.text_probe.compare(model.eval())
                model.train(training)
            output.metrics.update({f"{prefix}_{name}": value for name, value in numbers.items()})
        return output

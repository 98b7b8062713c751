"""Collator from examples to a batch: text with labels, images resampled once, cameras, depth in metres."""

import json
import logging
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..processing import AssumedCameraWarning
from .replies import ReplyRenderer
from .rows import DEFAULT_COLUMNS, BadSampleError, RowReader, TrainingRow, describe_row, is_repeated
from .withheld import assumed_focal_length, label_withheld, withheld_cameras

__all__ = ["BatchInfo", "DepthDataCollator"]

logger = logging.getLogger(__name__)

IGNORED = -100
CAMERA_NAMES = ("intrinsics", "focal_length", "fov")
TEXT_OUTPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class BatchInfo:
    """The contents of a batch.

    Args:
        rows: Names of its examples, with their files.
        skipped: Number of examples that were left out.
        images: Number of images.
        depth_images: Number of images with a depth map of at least one valid pixel.
        camera_images: Number of images with a label for the camera head.
    """

    rows: tuple[str, ...]
    skipped: int
    images: int
    depth_images: int
    camera_images: int = 0


@dataclass
class DepthDataCollator(DataCollatorForVisionLanguageModeling):
    """A collator of examples with or without images, depth and replies, in any mixture.

    docs/data.md describes an example. Files are decoded here, that is in the workers of a DataLoader, and the processor
    runs once per batch. The batch has `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels`
    `(examples, tokens)`, padded on the right; with images `pixel_values`, `image_grid_thw`, `focal_scale` `(images,)`
    and `cameras` `(images, 7)`, see [`DepthVLMImageProcessor`]; with depth `depth_labels`: for each image
    `(height, width)` in metres, float32, or None. A batch without a usable example is one row without labels.

    Args:
        processor ([`DepthVLMProcessor`]): Processor of the model.
        max_length (`int`, *optional*): Longest row in tokens; longer ones are truncated. None disables truncation.
        completion_only_loss (`bool`, *optional*): False trains the prompts of prompt-completion examples too.
        pad_to_multiple_of (`int`, *optional*): The padded length is a multiple of this.
        dataset_text_field (`str`): Column of plain text.
        assistant_only_loss (`bool`): False trains all of a conversation, not only the assistant's turns.
        chat_template (`str`, *optional*): Chat template instead of the processor's.
        columns (`dict[str, str | None]`): Names of the columns `depth`, `depth_scale`, `depth_type`, `focal_length`
            and `intrinsics`, if they differ from these; None for one that is not read.
        image_root (`str`, *optional*): Folder that relative image paths start from.
        depth_root (`str`, *optional*): Folder that relative depth paths start from.
        on_bad_sample (`str`): `"stop"` raises an error for an example that cannot be used; `"skip"` leaves it out,
            counts it and lists it.
        bad_samples_file (`str`, *optional*): JSON lines `{"row", "file", "reason"}` of the examples left out; every
            process that loads data appends to it.
        camera_withheld (`float`): Share of the images with a known camera that are processed as if none was given; see
            [`withheld_cameras`]. The batch then has `camera_labels` `(images,)`.
        return_info (`bool`): True adds the [`BatchInfo`] of a batch as `batch_info`.

    Raises:
        BadSampleError: If an example cannot be used, under `"stop"`.
        ValueError: If `max_length` would cut an image, `on_bad_sample` is unknown, or `camera_withheld` is no share.
        ChatTemplateError: If the chat template does not distinguish replies from prompts.
    """

    processor: Any  # not ProcessorMixin, which lacks the placeholder ids
    completion_only_loss: bool | None = None  # type: ignore[assignment]
    assistant_only_loss: bool = True
    columns: dict[str, str | None] = field(default_factory=dict)
    image_root: str | None = None
    depth_root: str | None = None
    on_bad_sample: str = "stop"
    bad_samples_file: str | None = None
    camera_withheld: float = 0.0
    return_info: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.columns) - set(DEFAULT_COLUMNS)
        if unknown:
            raise ValueError(f"`columns` has {sorted(unknown)}, expected some of {sorted(DEFAULT_COLUMNS)}.")
        if self.on_bad_sample not in ("stop", "skip"):
            raise ValueError(f"`on_bad_sample` is {self.on_bad_sample!r}, expected 'stop' or 'skip'.")
        if not 0 <= self.camera_withheld <= 1:
            raise ValueError(f"`camera_withheld` is {self.camera_withheld}, expected a share from 0 to 1.")
        self._listed: set[int] = set()
        self._warned = False
        camera = {name: getattr(self.processor.image_processor, name, None) for name in CAMERA_NAMES}
        self._reader = RowReader(
            ReplyRenderer(
                self.processor,
                self.chat_template,
                self.dataset_text_field,
                self.completion_only_loss is not False,
                self.assistant_only_loss,
            ),
            {**DEFAULT_COLUMNS, **self.columns},
            self.image_root,
            self.depth_root,
            {name: value for name, value in camera.items() if value is not None},
        )

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of `examples`, which are not modified."""
        rows: list[TrainingRow] = []
        for index, example in enumerate(examples):
            try:
                rows.append(self._reader.read(example, index))
            except BadSampleError as error:
                self._report(error)
        rows, features = self._process(rows)
        output = self._text(rows, features)
        output.update({key: value for key, value in features.items() if key not in TEXT_OUTPUTS})
        if self.return_info:
            depth = [one for row in rows for one in row.depth]
            output["batch_info"] = BatchInfo(
                rows=tuple(row.name for row in rows),
                skipped=sum(not is_repeated(example) for example in examples) - sum(not row.repeated for row in rows),
                images=len(depth),
                depth_images=sum(one is not None for one in depth),
                camera_images=int(output["camera_labels"].isfinite().sum()) if "camera_labels" in output else 0,
            )
        return output

    def _report(self, error: BadSampleError) -> None:
        """Raise `error`, or log and list it, once per numbered example and process over all epochs."""
        if self.on_bad_sample == "stop":
            raise error
        if isinstance(error.row, int):
            if error.row in self._listed:
                return
            self._listed.add(error.row)
        logger.warning(
            "Left out: %s: %s", describe_row("a row" if error.row is None else error.row, error.file), error.reason
        )
        if self.bad_samples_file is None:
            return
        line = json.dumps({"row": error.row, "file": error.file, "reason": error.reason}, ensure_ascii=False)
        os.makedirs(os.path.dirname(os.path.abspath(self.bad_samples_file)), exist_ok=True)
        # A single unbuffered write per line, since several loader processes append to the file.
        with open(self.bad_samples_file, "ab", buffering=0) as stream:
            stream.write((line + "\n").encode(errors="backslashreplace"))  # file names may be undecodable

    def _process(self, rows: list[TrainingRow]) -> tuple[list[TrainingRow], dict[str, Any]]:
        """Run the processor once for all rows; if it fails, run it for each row to find the faulty ones."""
        if not rows:
            return rows, {}
        try:
            return rows, self._call_processor(rows)
        except (TypeError, ValueError):
            usable = []
            for row in rows:
                try:
                    self._call_processor([row])
                    usable.append(row)
                except (TypeError, ValueError) as error:
                    self._report(BadSampleError(str(error), row.row, ", ".join(row.files) or None))
            if len(usable) == len(rows):
                raise
        return usable, self._call_processor(usable) if usable else {}

    def _call_processor(self, rows: list[TrainingRow]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        images = [image for row in rows for image in row.images]
        truths = {}
        if images:
            options["images"] = images
            cameras = [camera for row in rows for camera in row.cameras]
            if self.camera_withheld:
                truths = withheld_cameras(rows, self.camera_withheld)
                assumed = self.processor.image_processor.assumed_fov
                cameras = [
                    {"focal_length": assumed_focal_length(truths[index], assumed)} if index in truths else camera
                    for index, camera in enumerate(cameras)
                ]
            for name in CAMERA_NAMES:
                values = [camera.get(name) for camera in cameras]
                if any(value is not None for value in values):
                    options[name] = values
            depth = [one for row in rows for one in row.depth]
            if any(one is not None for one in depth):
                options["depth_maps"] = depth
        with warnings.catch_warnings():
            # The processor would warn in every batch, by image number; `_warn_of_assumed` names one example, once.
            warnings.simplefilter("ignore", AssumedCameraWarning)
            features = self.processor(
                text=[text for row in rows for text, _ in row.segments],
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_mm_token_type_ids=True,
                return_tensors="pt",
                **options,
            )
        self._warn_of_assumed(rows)
        if images and self.camera_withheld:
            label_withheld(features, truths)
        return dict(features)

    def _warn_of_assumed(self, rows: list[TrainingRow]) -> None:
        row = next((row for row in rows if row.assumed), None)
        if row is None or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"The focal length of an image of {row.name} is not known: a field of view of "
            f"{self.processor.image_processor.assumed_fov:g} degrees across the longer side is assumed. Where that is "
            "wrong, so is the depth that is learnt from it, by one factor. Give `focal_length` (pixels) or "
            "`intrinsics`. Further rows like it are not named.",
            stacklevel=2,
        )

    def _text(self, rows: list[TrainingRow], features: dict[str, Any]) -> dict[str, Any]:
        """Join the segments of every row, label the trained tokens, truncate and pad."""
        if not rows:
            # One valid row without labels, so that ranks stay in step.
            ids = torch.full((2,), self.processor.tokenizer.eos_token_id)
            return self._pad([(ids, torch.zeros_like(ids), torch.full_like(ids, IGNORED))])
        kept = features["attention_mask"].bool()
        ids, kinds = features["input_ids"], features["mm_token_type_ids"]
        placeholders = torch.tensor(self.processor.placeholder_ids)
        joined, first = [], 0
        for row in rows:
            parts = range(first, first + len(row.segments))
            first += len(row.segments)
            tokens = torch.cat([ids[i][kept[i]] for i in parts])
            trained = torch.cat(
                [torch.full((int(kept[i].sum()),), row.segments[i - parts.start][1], dtype=torch.bool) for i in parts]
            )
            trained &= ~torch.isin(tokens, placeholders)
            labels = torch.where(trained, tokens, IGNORED)
            joined.append(self._cut(row, tokens, torch.cat([kinds[i][kept[i]] for i in parts]), labels))
        return self._pad(joined)

    def _cut(self, row: TrainingRow, tokens: Tensor, kinds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        limit = self.max_length
        if limit is None or len(tokens) <= limit:
            return tokens, kinds, labels
        if (tokens[limit:] == self.processor.image_token_id).any():
            images = int((tokens == self.processor.image_token_id).sum())
            raise ValueError(
                f"The current max_length ({limit}) would cut an image of {row.name}, which has {len(tokens)} tokens, "
                f"{images} of them of images. Please set it to None, increase it, or lower the processor's "
                "`max_pixels`."
            )
        return tokens[:limit], kinds[:limit], labels[:limit]

    def _pad(self, rows: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(len(tokens) for tokens, _, _ in rows) // multiple) * multiple
        ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id)
        kinds, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for i, (tokens, kind, label) in enumerate(rows):
            ids[i, : len(tokens)], kinds[i, : len(tokens)], labels[i, : len(tokens)] = tokens, kind, label
            mask[i, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, "labels": labels}

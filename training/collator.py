"""Rows in, one batch for the model out: text with its labels, images resampled once, cameras, depth in metres."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..processing import AssumedCameraWarning
from .bad_samples import BadSampleError, BadSampleLog
from .replies import ReplyRenderer
from .rows import DEFAULT_COLUMNS, RowReader, TrainingRow, is_repeated

__all__ = ["BatchInfo", "DepthDataCollator"]

IGNORED = -100
CAMERA_NAMES = ("intrinsics", "focal_length", "fov")
TEXT_OUTPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class BatchInfo:
    """
    What a batch is made of.

    Args:
        rows (`tuple[str, ...]`): Its rows, with their files.
        skipped (`int`): Rows that were left out.
        images (`int`): Images.
        depth_images (`int`): Images with a depth map, which has at least one valid pixel.
    """

    rows: tuple[str, ...]
    skipped: int
    images: int
    depth_images: int


@dataclass
class DepthDataCollator(DataCollatorForVisionLanguageModeling):
    """
    Makes a batch of rows with or without images, depth and replies, in any mixture. docs/data.md describes a row.

    Files are decoded here, thus in the workers of a DataLoader, and the processor runs once for a batch.

    Args:
        processor ([`DepthVLMProcessor`]): Of the model.
        max_length (`int`, *optional*): Longer rows lose the end of their text. None: nothing is cut.
        completion_only_loss (`bool`, *optional*): False: prompts of prompt-completion rows are trained too.
        pad_to_multiple_of (`int`, *optional*): What the padded length is a multiple of.
        dataset_text_field (`str`): Column of plain text.
        assistant_only_loss (`bool`): False: all of a conversation is trained, not the assistant's turns alone.
        chat_template (`str`, *optional*): Instead of the processor's.
        columns (`dict[str, str | None]`): Names of the columns `depth`, `depth_scale`, `depth_type`, `focal_length`
            and `intrinsics`, where they differ from these; None for one that is not read.
        image_root, depth_root (`str`, *optional*): Folders that paths in the data start from.
        on_bad_sample (`str`): `"stop"`, or `"skip"`: a row that cannot be used is left out, counted and listed.
        bad_samples_file (`str`, *optional*): JSON lines with the rows that were left out.
        return_info (`bool`): Whether a batch has its [`BatchInfo`] under `batch_info`.

    Returns:
        `dict` with `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels` `(rows, tokens)`, padded on the
        right; with images `pixel_values`, `image_grid_thw`, `focal_scale` `(images,)` and `cameras` `(images, 7)`, see
        [`DepthVLMImageProcessor`]; with depth `depth_labels`: for every image `(H, W)` in metres, float32, or None.
        A batch without a usable row is one row without labels.

    Raises:
        BadSampleError: for a row that cannot be used, under `"stop"`.
        ValueError: if `max_length` would cut an image, or `on_bad_sample` is another word.
        ChatTemplateError: if the chat template does not tell replies from prompts.
    """

    processor: Any  # not ProcessorMixin: it knows the ids of its placeholders
    completion_only_loss: bool | None = None  # type: ignore[assignment]
    assistant_only_loss: bool = True
    columns: dict[str, str | None] = field(default_factory=dict)
    image_root: str | None = None
    depth_root: str | None = None
    on_bad_sample: str = "stop"
    bad_samples_file: str | None = None
    return_info: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.columns) - set(DEFAULT_COLUMNS)
        if unknown:
            raise ValueError(f"`columns` has {sorted(unknown)}, expected some of {sorted(DEFAULT_COLUMNS)}.")
        self._bad_samples = BadSampleLog(self.on_bad_sample, self.bad_samples_file)
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
        """Makes a batch of `examples`, which stay as they are."""
        rows: list[TrainingRow] = []
        for index, example in enumerate(examples):
            try:
                rows.append(self._reader.read(example, index))
            except BadSampleError as error:
                self._bad_samples.report(error)
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
            )
        return output

    def _process(self, rows: list[TrainingRow]) -> tuple[list[TrainingRow], dict[str, Any]]:
        """Runs the processor once for all rows, and only if it fails for each, to find those that it cannot take."""
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
                    self._bad_samples.report(BadSampleError(str(error), row.row, ", ".join(row.files) or None))
            if len(usable) == len(rows):
                raise
        return usable, self._call_processor(usable) if usable else {}

    def _call_processor(self, rows: list[TrainingRow]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        images = [image for row in rows for image in row.images]
        if images:
            options["images"] = images
            for name in CAMERA_NAMES:
                values = [camera.get(name) for row in rows for camera in row.cameras]
                if any(value is not None for value in values):
                    options[name] = values
            depth = [one for row in rows for one in row.depth]
            if any(one is not None for one in depth):
                options["depth_maps"] = depth
        with warnings.catch_warnings():
            # Of the processor's warning on every batch, which numbers images and not rows, one with a name is left.
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
        """Joins the segments of every row, labels what is trained, cuts and pads."""
        if not rows:
            # One row that a model can run on and that teaches nothing, so that ranks stay in step.
            ids = torch.full((2,), self.processor.tokenizer.eos_token_id)
            return self._pad([(ids, torch.zeros_like(ids), torch.full_like(ids, IGNORED))])
        kept = features["attention_mask"].bool()
        ids, kinds = features["input_ids"], features["mm_token_type_ids"]
        placeholders = torch.tensor(
            [
                self.processor.image_token_id,
                self.processor.video_token_id,
                self.processor.vision_start_token_id,
                self.processor.vision_end_token_id,
            ]
        )
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

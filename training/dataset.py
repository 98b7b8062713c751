"""Preparation of a `datasets` data set for the collator: column names, undecoded files, row numbers; no copy."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, LargeList, List, Value
from datasets.fingerprint import update_fingerprint
from trl.data_utils import get_dataset_column_names

from .config import DepthSFTConfig
from .replies import CONVERSATION_COLUMNS, is_image, marks_image, picture_of
from .rows import ROW_COLUMN, read_columns

logger = logging.getLogger(__name__)

ROWS_LOOKED_AT = 100  # for images in messages; images that appear only in later rows are rejected when read


def prepare_depth_dataset(dataset: Dataset | IterableDataset, config: DepthSFTConfig) -> Dataset | IterableDataset:
    """Prepare a data set for [`DepthDataCollator`], without reading or copying an image.

    The image column gets its standard name. Images and depth maps stay undecoded, so that they are decoded in the
    loader's workers and a broken file fails there with its row and reason. Every row gets its number in `__row__`: its
    index in the data set as loaded, even after a shuffle or a split; in a stream, its position in the shard of its
    worker.

    Args:
        dataset: Data set with or without features.
        config: Configuration with the column names.

    Raises:
        ValueError: If the image column does not exist, or its new name is taken.
    """
    names = list(dataset.column_names or next(iter(dataset)))
    prepared = ROW_COLUMN in names and config.image_column not in names
    if config.image_column is not None and not prepared:
        dataset, names = _rename_images(dataset, names, config.image_column)
    files = ("image", "images", *CONVERSATION_COLUMNS, config.depth_column)
    undecoded = {name: _undecoded(one) for name, one in (dataset.features or {}).items() if name in files}
    if isinstance(dataset, Dataset):
        dataset = _with_features(dataset, Features({**dataset.features, **undecoded}))
        return dataset if ROW_COLUMN in names else _number_rows(dataset)
    for name, feature in undecoded.items():
        if feature != dataset.features[name]:
            dataset = dataset.cast_column(name, feature)
    if ROW_COLUMN in names:
        return dataset
    features = None if dataset.features is None else Features({**dataset.features, ROW_COLUMN: Value("int64")})
    return dataset.map(_with_number, with_indices=True, features=features)


def prepare_eval(eval_dataset: Any, config: DepthSFTConfig) -> Any:
    """Prepare one data set, or each one in a dictionary; None stays None."""
    if eval_dataset is None:
        return None
    if isinstance(eval_dataset, dict):
        return type(eval_dataset)({name: prepare_depth_dataset(part, config) for name, part in eval_dataset.items()})
    return prepare_depth_dataset(eval_dataset, config)


def _rename_images(dataset: Any, names: list[str], column: str) -> tuple[Any, list[str]]:
    if column not in names:
        raise ValueError(f"There is no image column {column!r} in the data, which has {', '.join(names)}.")
    if dataset.features is None:
        many = isinstance(next(iter(dataset))[column], (list, tuple))
    else:
        many = isinstance(dataset.features[column], (List, LargeList, list))
    target = "images" if many else "image"
    if column == target:
        return dataset, names
    if target in names:
        raise ValueError(
            f"TRL expects the image column {column!r} under the name {target!r}, but the data has that column too. "
            f"Remove it, or select the others with `columns`."
        )
    return dataset.rename_column(column, target), [target if name == column else name for name in names]


def _undecoded(feature: Any) -> Any:
    """Return the feature with its images left as `{"bytes", "path"}`."""
    if isinstance(feature, Image):
        return Image(mode=feature.mode, decode=False)
    if isinstance(feature, LargeList):
        return LargeList(_undecoded(feature.feature))
    if isinstance(feature, List):
        return List(_undecoded(feature.feature), length=feature.length)
    if isinstance(feature, dict):
        return {name: _undecoded(one) for name, one in feature.items()}
    return feature


def _with_features(dataset: Dataset, features: Features) -> Dataset:
    # An image has the same Arrow type decoded or not; `cast` would rewrite a data set with lists of images.
    if features == dataset.features:
        return dataset
    result = copy.copy(dataset)
    result._info = dataset.info.copy()
    result._info.features = features
    result._fingerprint = update_fingerprint(dataset._fingerprint, _with_features, {"features": features})
    return result


def _number_rows(dataset: Dataset) -> Dataset:
    indices = dataset._indices
    if indices is None:
        return dataset.add_column(ROW_COLUMN, np.arange(len(dataset)))
    # `add_column` would first write out a shuffled or split data set, including images. Instead the underlying rows are
    # numbered, and the order is restored.
    order = indices.column(0).to_numpy()
    whole = copy.copy(dataset)
    whole._indices = None
    return _number_rows(whole).select(order)


def _with_number(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {ROW_COLUMN: index}


def wants_depth(args: DepthSFTConfig, dataset: Any) -> bool:
    """Return whether depth is trained, from the depth loss weight and the columns of the data.

    Raises:
        ValueError: If depth is requested and the data has none, or has depth without images.
    """
    if args.depth_loss_weight == 0 or not isinstance(dataset, Dataset | IterableDataset):
        return False  # TRL reports other types as errors
    columns = get_dataset_column_names(dataset) or []
    found = args.depth_column in columns or "depth_path" in columns  # `depth_path` is in DepthVLM-Bench's annotations
    given = {"depth_loss_weight": args.depth_loss_weight, **args.dense_weights().options()}
    asked = " and ".join(f"`{name}` is {weight}" for name, weight in given.items() if weight is not None)
    if not found and asked:
        raise ValueError(
            f"{asked}, but the training data has no column {args.depth_column!r} (it has {', '.join(columns)}). "
            "Name it with `depth_column`, or set `depth_loss_weight=0`, and no other weight of the depth loss, "
            "to train on text alone."
        )
    if not found:
        logger.info("The training data has no column %r: text alone is trained.", args.depth_column)
        return False
    if not {"image", "images", args.image_column} & set(columns) and not _holds_images(dataset):
        raise ValueError(
            f"The training data has depth but no images: no column of them (it has {', '.join(columns)}), and none in "
            f"the messages of its first {ROWS_LOOKED_AT} rows. Call the column 'images' or 'image', or name it with "
            "`image_column`."
        )
    if args.depth_column in columns and isinstance(dataset, Dataset):
        column = dataset.data.column(args.depth_column)
        if column.null_count == len(column):
            raise ValueError(
                f"Every value of the column {args.depth_column!r} is null: there is no depth to train on. Set "
                "`depth_loss_weight=0` to train on text alone."
            )
    _warn_of_unread_text(args, columns)
    return True


def _warn_of_unread_text(args: DepthSFTConfig, columns: list[str]) -> None:
    read = {*read_columns(args.columns(), args.dataset_text_field), args.image_column}
    unread = [name for name in columns if name not in read]
    if unread and not {*CONVERSATION_COLUMNS, args.dataset_text_field, "solution"} & set(columns):
        logger.warning(
            "The training data has no column of text that is read (%s or %r): every image gets the method's prompt and "
            "no reply. Not read: %s. Call a question 'prompt' and its reply 'completion' to train on them.",
            ", ".join(map(repr, CONVERSATION_COLUMNS)),
            args.dataset_text_field,
            ", ".join(unread),
        )


def embeds_images(dataset: Any) -> bool:
    """Return whether messages hold pictures or `<image>` marks, neither of which TRL would detect."""
    if not isinstance(dataset, Dataset | IterableDataset):
        return False
    has_column = {"image", "images"} & {*(get_dataset_column_names(dataset) or [])}
    return _holds_images(dataset) or (bool(has_column) and any(map(marks_image, _first_contents(dataset))))


def _holds_images(dataset: Any) -> bool:
    return any(
        is_image(part) and picture_of(part) is not None
        for content in _first_contents(dataset)
        if isinstance(content, list)
        for part in content
    )


def _first_contents(dataset: Any) -> Iterator[Any]:
    """Yield the contents of the messages of the first rows, under the names of both forms."""
    columns = [name for name in CONVERSATION_COLUMNS if name in (get_dataset_column_names(dataset) or [])]
    for row in dataset.select_columns(columns).take(ROWS_LOOKED_AT) if columns else ():
        for messages in (row[name] for name in columns if isinstance(row[name], list)):
            yield from (message.get("content", message.get("value")) for message in messages)

"""A `datasets` data set made ready for the collator: columns named, files left undecoded, rows numbered; no copy."""

import copy
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, LargeList, List, Value
from datasets.fingerprint import update_fingerprint

from .config import DepthSFTConfig
from .replies import CONVERSATION_COLUMNS
from .rows import ROW_COLUMN


def prepare_depth_dataset(dataset: Dataset | IterableDataset, config: DepthSFTConfig) -> Dataset | IterableDataset:
    """
    Prepares a data set for [`DepthDataCollator`].

    The image column gets its standard name. Images and depth maps stay undecoded, so that they are decoded in the
    loader's workers and a broken file fails there with its row and reason. Every row gets its number in `__row__`:
    that in the data set as loaded, also after a shuffle or a split; in a stream, its place in the shard of its worker.

    Args:
        dataset (`Dataset` or `IterableDataset`): With or without features.
        config ([`DepthSFTConfig`]): Its column names.

    Returns:
        The prepared data set. No image is read or copied for it.

    Raises:
        ValueError: if there is no such image column, or its new name is taken.
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
    return dataset if ROW_COLUMN in names else _number_stream(dataset)


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
            f"The image column {column!r} is to be named {target!r}, as TRL wants it, but the data has that column "
            f"too. Remove it, or select the others with `columns`."
        )
    return dataset.rename_column(column, target), [target if name == column else name for name in names]


def _undecoded(feature: Any) -> Any:
    """The feature with its images left as `{"bytes", "path"}`."""
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
    # An image has the same Arrow type decoded or not; `cast` would write out a data set with lists of images again.
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
    # `add_column` would first write out a shuffled or split data set, images and all. The rows beneath the order are
    # numbered instead, and the order is put back.
    order = indices.column(0).to_numpy()
    whole = copy.copy(dataset)
    whole._indices = None
    return _number_rows(whole).select(order)


def _number_stream(dataset: IterableDataset) -> IterableDataset:
    features = None if dataset.features is None else Features({**dataset.features, ROW_COLUMN: Value("int64")})
    return dataset.map(_with_number, with_indices=True, features=features)


def _with_number(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {ROW_COLUMN: index}

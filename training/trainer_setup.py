"""What a training run is, worked out from its settings, its model and its data before the trainer is made."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import AutoConfig
from trl import SFTConfig
from trl.data_utils import get_dataset_column_names

from .._loading import hub_keywords
from .config import DepthSFTConfig
from .dataset import prepare_depth_dataset
from .model_loading import init_options
from .replies import CONVERSATION_COLUMNS, is_image, marks_image, picture_of
from .rows import read_columns

logger = logging.getLogger(__name__)

ROWS_LOOKED_AT = 100  # for images in messages: what comes later without any before is refused when its turn comes


def as_depth_config(args: Any, model: Any) -> DepthSFTConfig:
    if isinstance(args, DepthSFTConfig):
        if args.packing and args.max_length is None:
            args = copy.copy(args)
            args.max_length = SFTConfig.max_length
            logger.warning("`packing` without `max_length`: examples are packed to TRL's %s tokens.", args.max_length)
        return args
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return DepthSFTConfig(f"{name.rstrip('/').split('/')[-1]}-SFT")
    if not isinstance(args, SFTConfig):
        values = args.to_dict()
        values["hub_token"] = args.hub_token  # `to_dict` hides it
        return DepthSFTConfig(**values)
    # The very values that were given, `max_length` included; what depth adds takes its defaults.
    config: Any = copy.copy(args)
    config.__class__ = DepthSFTConfig
    known = {f.name for f in dataclasses.fields(SFTConfig)}
    for field in dataclasses.fields(DepthSFTConfig):
        if field.name not in known:
            setattr(config, field.name, field.default)
    return config


def wants_depth(args: DepthSFTConfig, dataset: Any) -> bool:
    """Whether depth is trained, from the depth loss weight and the columns of the data."""
    if args.depth_loss_weight == 0 or not isinstance(dataset, Dataset | IterableDataset):
        return False  # TRL says what is wrong with another type
    columns = get_dataset_column_names(dataset) or []
    found = args.depth_column in columns or "depth_path" in columns  # the latter in DepthVLM-Bench's annotations
    if not found and args.depth_loss_weight is not None:
        raise ValueError(
            f"`depth_loss_weight` is {args.depth_loss_weight}, but the training data has no column "
            f"{args.depth_column!r} (it has {', '.join(columns)}). Name it with `depth_column`, or set "
            "`depth_loss_weight=0` to train on text alone."
        )
    if found and not {"image", "images", args.image_column} & set(columns) and not holds_images(dataset):
        raise ValueError(
            f"The training data has depth but no images: no column of them (it has {', '.join(columns)}), and none in "
            f"the messages of its first {ROWS_LOOKED_AT} rows. Call the column 'images' or 'image', or name it with "
            "`image_column`."
        )
    if found and args.depth_column in columns and isinstance(dataset, Dataset):
        column = dataset.data.column(args.depth_column)
        if column.null_count == len(column):
            raise ValueError(
                f"Every value of the column {args.depth_column!r} is null: there is no depth to train on. Set "
                "`depth_loss_weight=0` to train on text alone."
            )
    if found:
        _warn_of_unread_text(args, columns)
    else:
        logger.info("The training data has no column %r: text alone is trained.", args.depth_column)
    return found


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


def holds_images(dataset: Any) -> bool:
    """Whether messages of the first rows hold pictures themselves (`{"type": "image", "image": ...}`), as Qwen's do."""
    return any(
        is_image(part) and picture_of(part) is not None
        for content in _first_contents(dataset)
        if isinstance(content, list)
        for part in content
    )


def places_images(dataset: Any) -> bool:
    """Whether rows with images say `<image>` in the first messages, which TRL would train as a word."""
    columns = {*(get_dataset_column_names(dataset) or [])} if isinstance(dataset, Dataset | IterableDataset) else set()
    return bool(columns & {"image", "images"}) and any(map(marks_image, _first_contents(dataset)))


def _first_contents(dataset: Any) -> Iterator[Any]:
    """The contents of the messages of the first rows, under the names of both forms."""
    if not isinstance(dataset, Dataset | IterableDataset):
        return
    columns = [name for name in CONVERSATION_COLUMNS if name in (get_dataset_column_names(dataset) or [])]
    for row in dataset.select_columns(columns).take(ROWS_LOOKED_AT) if columns else ():
        for messages in (row[name] for name in columns if isinstance(row[name], list)):
            yield from (message.get("content", message.get("value")) for message in messages)


def collate_seeing(collator: Callable[[Any], dict[str, Any]], image_token: int | None, rows: Any) -> dict[str, Any]:
    """
    Have a collator make a batch, and see that it has pixels where its text has image tokens.

    Raises:
        ValueError: it has none.
    """
    inputs = collator(rows)
    if image_token is None or "input_ids" not in inputs or inputs.get("pixel_values") is not None:
        return inputs
    if count := int((inputs["input_ids"] == image_token).sum()):
        raise ValueError(
            f"A batch has {count} image tokens in its text and no image: the model would learn to answer without "
            "seeing. Give the images in a column 'images', or set `use_depth_collator=True`, which also reads those "
            "inside of messages."
        )
    return inputs


def names_depth_head(model: Any, args: DepthSFTConfig) -> bool:
    if not isinstance(model, str):
        core = model.get_base_model() if is_peft_model(model) else model
        return hasattr(core, "depth_head")
    options = init_options(args)
    options.setdefault("trust_remote_code", args.trust_remote_code)
    config = AutoConfig.from_pretrained(model, **hub_keywords(model, options))
    return config.model_type == "depthvlm"


def refuse_unsupported(args: DepthSFTConfig, compute_loss_func: Callable | None) -> None:
    if compute_loss_func is not None or args.label_smoothing_factor > 0:
        raise ValueError(
            "`compute_loss_func` and `label_smoothing_factor`, which TRL deprecates, are not supported with a depth "
            "loss. Leave them out, or subclass DepthSFTTrainer and override `compute_loss`."
        )


def muon_optimizer(args: DepthSFTConfig, given: Any) -> tuple[Any, dict[str, Any]]:
    """Muon and AdamW as `Trainer` takes an optimiser's class and keywords."""
    if given is not None:
        raise ValueError(
            f"Both `muon_learning_rate` ({args.muon_learning_rate}) and `optimizer_cls_and_kwargs` were given: leave "
            "one of them out."
        )
    from .optimizer import MuonFactory  # a package of many optimisers, imported where one of them is used

    return MuonFactory, {
        "muon_learning_rate": args.muon_learning_rate,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }


def without_checkpointing(args: DepthSFTConfig) -> None:
    """Stage 1 keeps no activation of the backbone: checkpointing would only make the frozen LLM go backward."""
    if args.gradient_checkpointing or args.activation_offloading:
        logger.info("The head alone is trained: gradient checkpointing and activation offloading are off.")
    args.gradient_checkpointing = args.activation_checkpointing = args.activation_offloading = False
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False


def with_head(peft_config: Any, commit: str | None) -> Any:
    """
    Return the adapter's configuration with the depth head among the modules that are trained and saved whole, and with
    the commit of the base model on the Hub, where there is one.
    """
    config = copy.deepcopy(peft_config)
    modules = list(getattr(config, "modules_to_save", None) or [])
    config.modules_to_save = modules if "depth_head" in modules else [*modules, "depth_head"]
    config.revision = config.revision or commit
    return config


def prepare_eval(eval_dataset: Any, args: DepthSFTConfig) -> Any:
    if eval_dataset is None:
        return None
    if isinstance(eval_dataset, dict):
        return type(eval_dataset)({name: prepare_depth_dataset(part, args) for name, part in eval_dataset.items()})
    return prepare_depth_dataset(eval_dataset, args)

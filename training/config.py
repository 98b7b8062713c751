"""Settings of a training run: everything of TRL's `SFTConfig`, and the depth of equation 5."""

import copy
import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from .dense_losses import DenseWeights

logger = logging.getLogger(__name__)

ON_BAD_SAMPLE = ("stop", "skip")


@dataclass
class DepthSFTConfig(SFTConfig):
    """Configuration of [`DepthSFTTrainer`]: [`trl.SFTConfig`] with the settings for depth.

    Every field is an option of `depthvlm sft` and a key of its YAML.

    Raises:
        ValueError: If a value is outside its range, which the message names.
    """

    # A single image is longer than TRL's default of 1,024 tokens.
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest sequence in tokens; longer ones are cut, which is an error where it would cut an image. "
            "None: nothing is cut, and `packing` packs to TRL's 1024."
        },
    )

    # The loss: text_loss + depth_loss_weight * depth_loss (paper, equation 5).
    depth_loss_weight: float | None = field(
        default=None,
        metadata={
            "help": "alpha of equation 5. None: the model's own (config.depth_loss_weight), and a data set without a "
            "depth column trains on text alone. 0: text alone, the depth column is not read."
        },
    )
    silog_lambda: float | None = field(
        default=None, metadata={"help": "lambda of equation 4, in [0, 1]. None: the model's own (config.silog_lambda)."}
    )

    # Losses for dense truth, added to SILog: docs/training.md.
    gradient_matching_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of multi-scale gradient matching in log depth, added to SILog; for dense true depth, and "
            "sharper edges. 0: none."
        },
    )
    normal_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of 1 - cos(angle) between predicted and true surface normals, added to SILog; for dense "
            "true depth of known cameras, and flatter planes. 0: none."
        },
    )
    camera_withheld: float = field(
        default=0.0,
        metadata={
            "help": "Share of the images with a known camera that are processed as if none was given, from which the "
            "camera head of a model with predict_fov learns."
        },
    )
    camera_loss_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the camera head's loss. None: the model's own (config.camera_loss_weight)."},
    )

    # Trained parts and their learning rates.
    trainable: list[str] | None = field(
        default=None,
        metadata={
            "nargs": "+",
            "help": "Trained part: 'head' (stage 1: the backbone runs without gradients, and there is no text "
            "loss), 'head+llm' (stage 2: the ViT and its mergers stay frozen), 'all', or patterns of parameter names "
            "('depth_head.*' 'model.language_model.layers.3?.*'). None: the model as it is given.",
        },
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the depth head. None: learning_rate."}
    )
    llm_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the language model. None: learning_rate."}
    )
    merger_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of the ViT's mergers, DeepStack's included. None: learning_rate."},
    )
    vit_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the ViT without its mergers. None: learning_rate."}
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of Muon, which then trains the matrices of hidden layers (0.02 is usual for a "
            "model trained from scratch); embeddings, norms and biases stay with AdamW and the learning rates "
            "above. None: `optim` trains everything."
        },
    )

    # The data's columns.
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images. None: 'images', or 'image' for one per example."}
    )
    depth_column: str = field(
        default="depth",
        metadata={
            "help": "Column of the depth maps: one, or a list aligned with the images; null where there is none."
        },
    )
    depth_scale_column: str = field(
        default="depth_scale", metadata={"help": "Column of the raw value divided by metres (1000 for millimetres)."}
    )
    depth_type_column: str = field(
        default="depth_type",
        metadata={"help": "Column that says 'z_depth' (the default) or 'ray_distance', which is converted."},
    )
    focal_length_column: str = field(
        default="focal_length", metadata={"help": "Column of the focal lengths in pixels of the images as stored."}
    )
    intrinsics_column: str = field(
        default="intrinsics", metadata={"help": "Column of the 3x3 camera matrices (or fx, fy, cx, cy), in pixels."}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that image paths in the data are relative to. None: the current one."}
    )
    depth_root: str | None = field(
        default=None, metadata={"help": "Folder that depth paths in the data are relative to. None: the current one."}
    )
    on_bad_sample: str = field(
        default="stop",
        metadata={
            "help": "For an example that cannot be read, 'stop' the run, or 'skip': it is left out, counted in the log "
            "and listed in OUTPUT_DIR/bad_samples.jsonl; never replaced by another.",
            "choices": list(ON_BAD_SAMPLE),
        },
    )

    use_depth_collator: bool = field(
        default=False,
        metadata={
            "help": "Read rows as for depth (cameras, loss on the reply alone) even if no depth is trained. Without it "
            "such data is read as `trl sft` reads it."
        },
    )

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "latest",
            "help": "Resume from a checkpoint: a folder, or without a value the newest whole one of output_dir. If "
            "there is none, the run starts from the beginning, so that the same command starts and resumes a run.",
        },
    )

    # Observation.
    depth_log_images: int = field(
        default=0,
        metadata={"help": "Steps between two pictures (image, truth, prediction) sent to the trackers; 0: none."},
    )
    text_probe: str | None = field(
        default=None,
        metadata={
            "help": "Data set (Hub name or folder) of conversations on which every evaluation measures how far the "
            "replies moved from the untrained model's: exact match, and KL divergence per token of the reply."
        },
    )
    text_probe_split: str = field(default="train", metadata={"help": "Split of --text_probe."})
    text_probe_samples: int = field(default=64, metadata={"help": "Examples of --text_probe that are used, at most."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.trainable, str):
            self.trainable = [self.trainable]
        if self.depth_loss_weight is not None and not 0 <= self.depth_loss_weight < float("inf"):
            raise ValueError(f"`depth_loss_weight` is {self.depth_loss_weight}, expected a finite number >= 0.")
        if self.silog_lambda is not None and not 0 <= self.silog_lambda <= 1:
            raise ValueError(f"`silog_lambda` is {self.silog_lambda}, expected a number in [0, 1].")
        dense = self.dense_weights()
        if self.depth_loss_weight == 0 and dense.names:
            raise ValueError(
                "`depth_loss_weight` is 0, so `gradient_matching_weight` and `normal_weight`, which are parts of the "
                "depth loss, must be 0 too."
            )
        if self.camera_loss_weight is not None and not 0 <= self.camera_loss_weight < float("inf"):
            raise ValueError(f"`camera_loss_weight` is {self.camera_loss_weight}, expected a finite number >= 0.")
        if not 0 <= self.camera_withheld <= 1:
            raise ValueError(f"`camera_withheld` is {self.camera_withheld}, expected a share in [0, 1].")
        if self.on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"`on_bad_sample` is {self.on_bad_sample!r}, expected one of {', '.join(ON_BAD_SAMPLE)}.")
        if self.depth_log_images < 0:
            raise ValueError(f"`depth_log_images` is {self.depth_log_images}, expected 0 or a number of steps.")
        for part, rate in {**self.group_learning_rates(), "muon": self.muon_learning_rate}.items():
            if rate is not None and not 0 <= rate < float("inf"):
                raise ValueError(f"`{part}_learning_rate` is {rate}, expected a finite number >= 0.")

    def to_dict(self) -> dict[str, Any]:
        """Return the values for trackers, with tokens hidden, including the one in `model_init_kwargs`."""
        values = super().to_dict()
        options = values.get("model_init_kwargs")
        if isinstance(options, dict) and options.get("token"):
            values["model_init_kwargs"] = options | {"token": "<TOKEN>"}
        return values

    def group_learning_rates(self) -> dict[str, float | None]:
        """Return the peak learning rate of each part of the model, or None if it is `learning_rate`."""
        return {
            "head": self.head_learning_rate,
            "llm": self.llm_learning_rate,
            "merger": self.merger_learning_rate,
            "vit": self.vit_learning_rate,
        }

    def dense_weights(self) -> DenseWeights:
        """Return the weights of the losses for dense truth.

        Raises:
            ValueError: If one is negative or not finite.
        """
        return DenseWeights(self.gradient_matching_weight, self.normal_weight)

    def columns(self) -> dict[str, Any]:
        """Return the names of the data's columns by their contents."""
        return {
            "depth": self.depth_column,
            "depth_scale": self.depth_scale_column,
            "depth_type": self.depth_type_column,
            "focal_length": self.focal_length_column,
            "intrinsics": self.intrinsics_column,
        }


def as_depth_config(args: Any, model: Any) -> DepthSFTConfig:
    """Return the configuration of a run, converted from TRL's or transformers', or the default.

    Args:
        args: The given configuration; its values are kept, including `max_length`.
        model: Model, or its name, which names the output folder if there is no configuration.
    """
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
    # TRL's values have been through `__post_init__`, which must not run on them twice.
    config = object.__new__(DepthSFTConfig)
    vars(config).update({one.name: one.default for one in dataclasses.fields(DepthSFTConfig)}, **vars(args))
    return config

"""`DepthSFTTrainer`: TRL's `SFTTrainer` with `loss = text_loss + alpha * depth_loss` (paper, equation 5)."""

import logging
import os
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig, SFTTrainer

from ..checkpoint import resolve_model_path
from ..modeling_depthvlm import DepthVLMForConditionalGeneration
from .callbacks import DepthMeter, LearningRates, TextProbe, log_picture, picture_grid, probe_rows
from .card import HubPushMixin, count_data, earlier_stages
from .checkpoints import CheckpointMixin, resolve_checkpoint
from .collator import BatchInfo, DepthDataCollator
from .config import DepthSFTConfig, as_depth_config
from .dataset import embeds_images, prepare_depth_dataset, prepare_eval, wants_depth
from .depth_checks import FirstLook
from .evaluation import EvaluationMixin
from .forward import DepthTargets, install_training_forward
from .model_loading import adapter_with_head, has_depth_head, load_model
from .optimizer import MuonFactory, name_parameter_groups, set_trainable, trained_parts
from .rows import read_columns

logger = logging.getLogger(__name__)


class Mode(Enum):
    """Parts of the loss that a run trains, and the collator that reads its data."""

    TRL = "text, in examples that TRL reads"
    TEXT = "text, in examples that DepthDataCollator reads"
    JOINT = "text and depth"
    HEAD = "the depth head alone"


class DepthSFTTrainer(EvaluationMixin, CheckpointMixin, HubPushMixin, SFTTrainer):
    """[`trl.SFTTrainer`] for models with a depth head and data with a depth column.

    On data with a depth column the loss is `text_loss + alpha * depth_loss` (equation 5): cross-entropy over the
    reply's tokens, and SILog over the images with depth, each a mean over the whole accumulated, global batch, however
    it is cut into micro-batches and ranks. `gradient_matching_weight` and `normal_weight` add losses for dense depth to
    SILog. On data without one, or with `depth_loss_weight=0`, it is `SFTTrainer`.

    The arguments are those of `SFTTrainer`. A model given by its name may also be a plain checkpoint of any supported
    family (`Qwen/Qwen3.5-4B`), which gets a new head in that family's class, or one of the published implementation.

    Raises:
        ValueError: If depth is to be trained but the data or the model has none; if
            `trainable` and PEFT are both given; for deprecated arguments of TRL that this loss does not support.
        FloatingPointError: In training, if the loss is not finite; the message names the batch.
    """

    args: DepthSFTConfig
    model: Any
    processing_class: Any
    _tag_names = [*SFTTrainer._tag_names, "depthvlm"]  # noqa: RUF012
    _name = "Depth SFT"

    def __init__(
        self,
        model: Any,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable | None = None,
    ):
        if isinstance(model, str | os.PathLike):
            model = resolve_model_path(str(model))
        args = as_depth_config(args, model)
        depth = wants_depth(args, train_dataset)
        self.has_depth_head = has_depth_head(model, args) or depth
        if depth and (compute_loss_func is not None or args.label_smoothing_factor > 0):
            raise ValueError(
                "`compute_loss_func` and `label_smoothing_factor`, which TRL deprecates, are not supported with a "
                "depth loss. Leave them out, or subclass DepthSFTTrainer and override `compute_loss`."
            )
        init_kwargs = args.model_init_kwargs
        if isinstance(model, str) and self.has_depth_head:
            model, processor = load_model(model, args, quantization_config)
            processing_class = processing_class or processor
            quantization_config = args.model_init_kwargs = None  # already applied; TRL would warn that it ignores them
        if depth and not hasattr(model, "depth_head") and not is_peft_model(model):
            raise ValueError(
                f"The data has depth, but {type(model).__name__} has no depth head. Pass the model's name, or load it "
                "with DepthVLMForConditionalGeneration.from_pretrained, which adds one to a plain backbone."
            )
        if args.trainable is not None:
            if peft_config is not None or is_peft_model(model):
                raise ValueError(
                    "Both `trainable` and a PEFT adapter were given. With an adapter its weights and the depth head "
                    "are trained: leave `trainable` out."
                )
            set_trainable(model, args.trainable)
        embedded = embeds_images(train_dataset)
        if depth:
            self.mode = Mode.HEAD if peft_config is None and trained_parts(model) == ["head"] else Mode.JOINT
        else:
            self.mode = Mode.TEXT if args.use_depth_collator or embedded else Mode.TRL
        if self.head_alone:
            _turn_checkpointing_off(args)
        if peft_config is not None and self.has_depth_head:
            peft_config = adapter_with_head(peft_config, getattr(model.config, "_commit_hash", None))
        if args.muon_learning_rate is not None:
            optimizer_cls_and_kwargs = _muon_and_keywords(args, optimizer_cls_and_kwargs)
        self.data_names: list[str] = []  # for the record of this run; set by `depthvlm sft`
        self.data_counts = count_data(train_dataset)
        if embedded:  # TRL would now read and tokenize every picture and drop its pixels
            if args.packing:
                raise ValueError("Messages that hold images cannot be packed: set `packing=False`.")
            given: Any = args.dataset_kwargs or {}
            args.dataset_kwargs = {**given, "skip_prepare_dataset": True}
        if self.reads_cameras and train_dataset is not None:
            train_dataset = prepare_depth_dataset(train_dataset, args)
            eval_dataset = prepare_eval(eval_dataset, args)
        loaders: Any = args.accelerator_config
        if self.depth_enabled and loaders.dispatch_batches is None:
            loaders.dispatch_batches = False  # batches of pictures cannot be joined and split again

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )
        args.model_init_kwargs = init_kwargs
        self.earlier_stages = earlier_stages(self.depth_model.config) if self.has_depth_head else []
        self.text_probe: TextProbe | None = None
        if args.text_probe is not None:
            rows = probe_rows(args.text_probe, args.text_probe_split, args.text_probe_samples)
            file = os.path.join(str(args.output_dir), "text_probe.safetensors")
            self.text_probe = TextProbe(rows, self.processing_class, file)
        if data_collator is None and self.reads_cameras:
            self.data_collator = self._depth_collator(args)
        if self.depth_enabled:
            self._prepare_depth_loss()
        elif self.reads_cameras and self.has_depth_head:
            install_training_forward(self.depth_model)

    def _prepare_depth_loss(self) -> None:
        config, args = self.depth_model.config, self.args
        if args.depth_loss_weight is not None:
            config.depth_loss_weight = args.depth_loss_weight
        if args.silog_lambda is not None:
            config.silog_lambda = args.silog_lambda
        if args.camera_loss_weight is not None:
            config.camera_loss_weight = args.camera_loss_weight
        self.depth_loss_weight = config.depth_loss_weight
        camera = self.depth_model.depth_head.camera
        self.camera_loss_weight = 0.0 if camera is None else config.camera_loss_weight
        if camera is not None and not args.camera_withheld and any(p.requires_grad for p in camera.parameters()):
            logger.warning("`camera_withheld` is 0, so the camera head has no example to learn from.")
        if camera is None and args.camera_loss_weight is not None:
            raise ValueError(
                "`camera_loss_weight` is for a model with a camera head (`predict_fov`), which this lacks."
            )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        install_training_forward(
            self.depth_model, config.silog_lambda, not self.head_alone, sharded, args.dense_weights()
        )
        # The backbones say no and would get a mean of means; `compute_loss` here normalises by the step's tokens.
        self.model_accepts_loss_kwargs = True
        self._meters = {mode: DepthMeter(self.accelerator) for mode in ("train", "eval")}
        self._learning_rates = LearningRates()
        self.add_callback(self._learning_rates)
        self._pictured_step = -1
        self._first_look: FirstLook | None = FirstLook() if self.is_world_process_zero() else None
        self._depth_images_in_step: Tensor | None = None
        self._camera_images_in_step: Tensor | None = None

    @property
    def depth_enabled(self) -> bool:  # type: ignore[override]  # only declared in the mixin
        """True if there is a depth loss."""
        return self.mode in (Mode.JOINT, Mode.HEAD)

    @property
    def head_alone(self) -> bool:
        """True in stage 1: the backbone runs without gradients, and there is no text loss."""
        return self.mode is Mode.HEAD

    @property
    def reads_cameras(self) -> bool:  # type: ignore[override]
        """True if [`DepthDataCollator`] reads the data."""
        return self.mode is not Mode.TRL

    @property
    def depth_model(self) -> DepthVLMForConditionalGeneration:
        """The model with the depth head, without PEFT's wrapper."""
        return self.model.get_base_model() if is_peft_model(self.model) else self.model

    def _depth_collator(self, args: DepthSFTConfig) -> DepthDataCollator:
        return DepthDataCollator(
            self.processing_class,
            max_length=args.max_length,
            pad_to_multiple_of=None if args.pad_to_multiple_of is None else int(args.pad_to_multiple_of),
            dataset_text_field=args.dataset_text_field,
            completion_only_loss=args.completion_only_loss,
            chat_template=self.chat_template,
            columns=args.columns(),
            image_root=args.image_root,
            depth_root=args.depth_root,
            on_bad_sample=args.on_bad_sample,
            bad_samples_file=os.path.join(str(args.output_dir), "bad_samples.jsonl"),
            camera_withheld=args.camera_withheld,
            return_info=self.depth_enabled,
        )

    def _send_telemetry(self) -> None:
        """Send nothing, whereas TRL reports each run to the Hub here."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.reads_cameras:
            # Columns that the collator reads must not be dropped, although they are no model inputs.
            self._signature_columns: Any = read_columns(self.args.columns(), self.args.dataset_text_field)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        collator = self.data_collator
        if not isinstance(collator, DepthDataCollator):
            token = getattr(self.depth_model.config, "image_token_id", None)
            self.data_collator = partial(collate_with_pixels, collator, token)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimiser as in transformers, with a group and a learning rate for each part of the model."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.depth_enabled:
            model = args[0] if args and args[0] is not None else self.model
            name_parameter_groups(optimizer, model, self.args.group_learning_rates())
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Take the batches of a step as in transformers, and count the images with depth of the global batch."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.depth_enabled:
            infos = [_info(batch) for batch in batches]
            images = [sum(info.depth_images for info in infos), sum(info.camera_images for info in infos)]
            counts = self.accelerator.reduce(torch.tensor(images, dtype=torch.float32, device=device), reduction="sum")
            self._depth_images_in_step, self._camera_images_in_step = counts
            self._look_at(batches)
            self._meters["train"].steps += 1
        return batches, num_items_in_batch

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute `text_loss + alpha * depth_loss`, each normalised over the whole accumulated, global batch."""
        if not self.depth_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        info = _info(inputs)
        inputs.pop("batch_info")
        targets = DepthTargets(
            depth_labels=inputs.pop("depth_labels", None) or [None] * info.images,
            focal_scale=inputs.pop("focal_scale", None),
            weight=self._weight(self.depth_loss_weight, info.depth_images, self._depth_images_in_step),
            head_runs=self._head_runs(inputs),
            cameras=inputs.get("cameras"),
            camera_labels=inputs.pop("camera_labels", None),
            camera_weight=self._weight(self.camera_loss_weight, info.camera_images, self._camera_images_in_step),
        )
        outputs: Any = None

        def call(**kwargs: Any) -> Any:
            nonlocal outputs
            if "fused_lm_head" not in kwargs:  # TRL needs full logits, only for `compute_metrics`
                return model(**kwargs)
            outputs = model(**kwargs, depth_targets=targets)
            return outputs

        returned: Any = None
        if self.head_alone:
            call(**inputs, fused_lm_head=True)
            text_loss = torch.zeros((), device=outputs.depth_loss.device)
            if return_outputs:
                with torch.no_grad():
                    returned = model(**{k: v for k, v in inputs.items() if k != "labels"})
        else:
            text_loss = super().compute_loss(call, inputs, return_outputs, num_items_in_batch)
            if return_outputs:
                text_loss, returned = text_loss
        depth_loss = outputs.depth_loss.to(text_loss.device)
        losses = {"text": text_loss, "depth": depth_loss}
        if outputs.camera_loss is not None:
            losses["camera"] = outputs.camera_loss.to(text_loss.device)
        loss: Any = sum(losses.values())
        self._check_finite(losses, info)
        self._meter(outputs, text_loss, depth_loss, inputs, info)
        if self._picture_is_due() and outputs.scores is not None:
            picture = picture_grid(
                inputs, targets.depth_labels, outputs.scores.prediction, self.processing_class.image_processor
            )
            if picture is not None:
                self._pictured_step = self.state.global_step
                log_picture(self, picture)
        return (loss, returned) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as in TRL, with the numbers of depth; those of an evaluation are exact over its tokens and images."""
        if self.depth_enabled:
            training = self.model.training
            numbers = self._meters["train" if training else "eval"].read(
                alpha=self.depth_loss_weight,
                training=training,
                text=not self.head_alone,
                dense=self.args.dense_weights(),
                camera=self.camera_loss_weight,
            )
            if training:
                tokens = numbers.pop("tokens", 0.0)
                if self.head_alone and numbers:  # otherwise TRL counts them
                    self._total_train_tokens += round(tokens)
                    numbers["num_tokens"] = self._total_train_tokens
                if "learning_rate" in logs:
                    numbers |= self._learning_rates.values
                prefix = ""
            else:
                prefix = next((key.removesuffix("loss") for key in logs if key.endswith("_loss")), "eval_")
            logs.update({f"{prefix}{name}": value for name, value in numbers.items()})
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as in transformers; incomplete checkpoints are skipped."""
        checkpoint = resolve_checkpoint(str(self.args.output_dir), resume_from_checkpoint)
        if self.text_probe is not None:
            if self.is_world_process_zero():  # the checkpoint is loaded later: this is the base model
                self.text_probe.remember(self.model.eval(), again=checkpoint is None)
            self.accelerator.wait_for_everyone()
        if self.depth_enabled:
            self._meters["train"].reset()
        return super().train(checkpoint, *args, **kwargs)

    def end(self) -> None:
        """End the run as the base class does; neither training nor evaluation can continue afterwards."""
        # DDP's reducer must not be the last to hold the process group: freed with it, under Python's lock, the group
        # waits for its threads, one of which may be waiting for that lock (gloo; torch 2.13): a deadlock.
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        super().end()

    def _look_at(self, batches: list[dict[str, Any]]) -> None:
        """Warn, once, of signs that depth or cameras of the first images are wrong."""
        if self._first_look is None:
            return
        for batch in batches:
            self._first_look.add(batch)
        if self._first_look.full:
            for sign in self._first_look.signs():
                logger.warning("The first images look wrong. %s", sign)
            self._first_look = None

    def _weight(self, weight: float, images: int, images_in_step: Tensor | None) -> Tensor | float:
        """Return the factor on the sum of this micro-batch's losses: a weight over the step's images with labels."""
        if not self.model.training or images_in_step is None:
            return weight / max(1, images)
        # DDP and FSDP average gradients over ranks.
        ranks = self.accelerator.num_processes // self.get_tp_size()
        return weight * ranks / images_in_step.clamp(min=1)

    def _head_runs(self, inputs: dict[str, Any]) -> int:
        """Return how often the depth head runs in this batch: once per image size, with ZeRO-3 of any rank's batch."""
        grids = inputs.get("image_grid_thw")
        if not is_deepspeed_zero3_enabled():
            return 1
        sizes = torch.tensor([1 if grids is None else len(grids.unique(dim=0))], device=self.accelerator.device)
        return int(self.accelerator.gather(sizes).max())

    def _picture_is_due(self) -> bool:
        every, step = self.args.depth_log_images, self.state.global_step
        return every > 0 and step % every == 0 and step != self._pictured_step and self.is_world_process_zero()

    def _check_finite(self, losses: dict[str, Tensor], info: BatchInfo) -> None:
        if torch.isfinite(sum(losses.values())):  # type: ignore[arg-type]
            return
        shown = ", ".join(f"{name} {loss.item()}" for name, loss in losses.items())
        raise FloatingPointError(
            f"The loss is not finite at step {self.state.global_step + 1} ({shown}), in a batch of: "
            f"{'; '.join(info.rows)}. Look at these rows; if they are good, lower the learning rate, and resume from "
            "the last checkpoint. No step was taken with it."
        )

    def _meter(
        self, outputs: Any, text_loss: Tensor, depth_loss: Tensor, inputs: dict[str, Any], info: BatchInfo
    ) -> None:
        text = {}
        if outputs.log_probs is not None:
            text = {"text_nll": -outputs.log_probs.detach().sum(), "text_tokens": outputs.label_mask.sum()}
        tokens = inputs["attention_mask"].sum() if self.head_alone and self.model.training else 0.0
        cameras: dict[str, Tensor] = {}
        if outputs.camera_loss is not None:
            names = ("camera_nll", "camera_error", "camera_images")
            cameras = {
                "camera_share": outputs.camera_loss.detach(),
                **dict(zip(names, outputs.scores.cameras, strict=True)),
            }
        self._meters["train" if self.model.training else "eval"].add(
            outputs.scores.totals if outputs.scores is not None else None,
            text_share=text_loss.detach(),
            depth_share=depth_loss.detach(),
            images=float(info.images),
            skipped=float(info.skipped),
            tokens=tokens,
            **text,
            **cameras,
        )


def collate_with_pixels(
    collator: Callable[[Any], dict[str, Any]], image_token: int | None, rows: Any
) -> dict[str, Any]:
    """Let a collator make a batch, and check that it has pixels if its text has image tokens.

    Raises:
        ValueError: If it has none.
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


def _turn_checkpointing_off(args: DepthSFTConfig) -> None:
    """Turn off gradient checkpointing and offloading: in stage 1 the frozen backbone keeps no activations."""
    if args.gradient_checkpointing or args.activation_offloading:
        logger.info("The head alone is trained: gradient checkpointing and activation offloading are off.")
    args.gradient_checkpointing = args.activation_checkpointing = args.activation_offloading = False
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False


def _muon_and_keywords(args: DepthSFTConfig, given: Any) -> tuple[Any, dict[str, Any]]:
    if given is not None:
        raise ValueError(
            f"Both `muon_learning_rate` ({args.muon_learning_rate}) and `optimizer_cls_and_kwargs` were given: leave "
            "one of them out."
        )
    return MuonFactory, {
        "muon_learning_rate": args.muon_learning_rate,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }


def _info(batch: dict[str, Any]) -> BatchInfo:
    try:
        return batch["batch_info"]
    except KeyError:
        raise KeyError(
            "The data collator gives no `batch_info`, which depth training needs: use DepthDataCollator(..., "
            "return_info=True), or a subclass of it."
        ) from None

# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints: read other layouts' configurations, check the weights' headers against them, and load."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file, cached_files, resolve_revision

from .backbones_depthvlm import family_of, own_family

HUB_KWARGS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")

# Names of the heads in published checkpoints, and the names used here (paper, table 4).
PUBLISHED_HEADS: dict[str, dict[str, Any]] = {
    "dpt": {"head_type": "dpt_light", "feature_source": "vit+llm"},
    "mlp": {"head_type": "mlp", "feature_source": "llm_final"},
}
HEAD = "depth_head."
CAMERA_HEAD = f"{HEAD}camera."
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
NO_ADAPTER = {"subfolder": "no-adapter"}  # where transformers looks for one beside a model, and finds none
LAYERS = {
    "text_config": ("num_hidden_layers", r"(?:^|\.)(?:language_model|model)\.layers\.(\d+)\."),
    "vision_config": ("depth", r"(?:^|\.)visual\.blocks\.(\d+)\."),
}


def adopt_config_dict(config_dict: dict[str, Any], path: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Turn the configuration of a plain checkpoint, or of one in the published layout, into one of DepthVLM.

    A published DepthVLM checkpoint has `depth_head_type`; the widths of its head are read from the safetensors header
    of its weights. A plain checkpoint has neither and gets a new head.

    Raises:
        ValueError: `depth_head_type` is unknown, or the weights of that head are missing.
    """
    adopted = {key: value for key, value in config_dict.items() if not key.startswith("depth_head_")}
    family = family_of(config_dict, path)
    adopted |= {"model_type": family.config.model_type, "architectures": [family.model.__name__]}
    if has_head(config_dict):
        header = weights_header(path, hub_kwargs) or {}
        adopted["depth_config"] = published_head(config_dict, header, path)
    return adopted


def published_head(config_dict: dict[str, Any], header: dict[str, list[int] | None], path: str) -> dict[str, Any]:
    """Return the `depth_config` of a checkpoint in the published layout.

    Args:
        config_dict: Its configuration, as stored.
        header: Shapes of its weights by name; only those of the head are needed.
        path: Its name in messages.
    """
    published = config_dict["depth_head_type"]
    if published not in PUBLISHED_HEADS:
        raise ValueError(
            f"{path}: its config says depth_head_type={published!r}, expected one of {', '.join(PUBLISHED_HEADS)}."
        )
    shapes = {name.removeprefix(HEAD): shape for name, shape in header.items() if name.startswith(HEAD) and shape}
    if not shapes:
        raise ValueError(
            f"{path}: its config says depth_head_type={published!r}, but no `depth_head.*` weight is in it. Use a "
            "complete checkpoint, or remove `depth_head_type` from config.json to start with a new head."
        )
    try:
        if published == "mlp":
            widths = _mlp(shapes, config_dict)
        else:
            widths = {
                "features": shapes["scratch.layer1_rn.weight"][0],
                "out_channels": [shapes[f"projects.{level}.weight"][0] for level in range(4)],
            }
    except KeyError as error:
        raise ValueError(
            f"{path}: its config says depth_head_type={published!r}, but the weight `depth_head.{error.args[0]}` of "
            f"such a head is missing. It has: {', '.join(sorted(shapes)[:6])}, ..."
        ) from error
    return {**PUBLISHED_HEADS[published], **widths}


def _mlp(shapes: dict[str, list[int]], config_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the widths and the mode of a published MLP head.

    The modes are the final LLM state; four concatenated maps under one LayerNorm over all of them; and their sum, which
    has the shapes of the first and is recognised only by the config's `depth_head_feature_mode`.
    """
    width, (hidden, inputs) = shapes["norm.weight"][0], shapes["mlp.0.weight"]
    found: dict[str, Any] = {"hidden_size": hidden}
    if width != inputs:  # DepthVLM's own kind in the published layout: one LayerNorm for all four maps
        return found | {"feature_source": "vit+llm"}
    if width != (config_dict.get("text_config") or {}).get("hidden_size"):
        return found | {"feature_source": "vit+llm", "mlp_fusion": "concat_norm"}
    summed = "sum" in str(config_dict.get("depth_head_feature_mode"))
    return found | ({"feature_source": "vit+llm", "mlp_fusion": "sum"} if summed else {})


def weights_header(
    path: str, hub_kwargs: dict[str, Any], variant: str | None = None
) -> dict[str, list[int] | None] | None:
    """Return the names of a checkpoint's weights, with their shapes where these come from a file that holds the head.

    Returns:
        None where there are no safetensors weights (in an adapter's folder, for example).

    Raises:
        ValueError: Its index names files that are not safetensors: pickled weights are never read.
        OSError: A file is incomplete.
    """
    optional: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": True,
    }
    names: dict[str, list[int] | None] = {}
    stem, end = WEIGHTS.split(".")
    weights = WEIGHTS if variant is None else f"{stem}.{variant}.{end}"
    index_name = INDEX if variant is None else f"{WEIGHTS}.index.{variant}.json"
    if not cached_file(path, weights, **hub_kwargs, **optional) and (
        index := cached_file(path, index_name, **hub_kwargs, **optional)
    ):
        weight_map = read_weight_map(Path(index))
        names |= dict.fromkeys(weight_map)
        files = sorted({file for name, file in weight_map.items() if name.startswith(HEAD)})
    else:
        files = [weights]
    found = cached_files(path, files, **hub_kwargs, **optional) if files else []
    for file in found or []:
        try:
            with safe_open(file, framework="pt") as tensors:
                names |= {key: list(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise OSError(
                f"A safetensors file of {path} is incomplete or damaged ({error}): {Path(file).name}. Copy or download "
                "it again."
            ) from error
    return names or None


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of each weight, from an index of safetensors files.

    Raises:
        ValueError: It is not an index, or it names files that are not safetensors.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        others = sorted({str(file) for file in weight_map.values() if not str(file).endswith(".safetensors")})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of safetensors files ({error!r}). Download it again.") from error
    if others:
        raise ValueError(
            f"{index} names {', '.join(others[:3])}: DepthVLM reads safetensors alone, never pickle. Convert the "
            "weights to safetensors first."
        )
    return weight_map


def adapter_folder(path: str, hub_kwargs: dict[str, Any]) -> Path | None:
    """Return the folder of the PEFT adapter in `path`, downloaded if necessary, or None if there is none.

    Raises:
        FileNotFoundError: Its weights are not safetensors.
    """
    optional: Any = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    config = cached_file(path, ADAPTER_CONFIG, **hub_kwargs, **optional)
    if config is None:
        return None
    if not cached_file(path, ADAPTER_WEIGHTS, **hub_kwargs, **optional):
        raise FileNotFoundError(f"The adapter {path} has no {ADAPTER_WEIGHTS}: pickled weights are never read.")
    return Path(config).parent


def check_weights(config_dict: dict[str, Any], header: dict[str, list[int] | None], path: str) -> None:
    """Raise ValueError if the configuration has more layers than the weights, or a head that the weights lack.

    This runs before any part of the model is built.
    """
    for part, (key, pattern) in LAYERS.items():
        # Older files keep the text settings at the top level.
        promised = (config_dict.get(part) or config_dict).get(key)
        held = len({found[1] for name in header if (found := re.search(pattern, name))})
        if isinstance(promised, int) and promised > held:
            raise ValueError(
                f"{path}: its config says {part}.{key}={promised}, but its weights hold {held} such layers. The config "
                "is of another checkpoint, or the weights are incomplete."
            )
    if has_head(config_dict) and not any(name.startswith(HEAD) for name in header):
        raise ValueError(
            f"{path}: its config is of a model with a depth head, but no `depth_head.*` weight is in it. Use a "
            "complete checkpoint; to start with a new head, begin with the plain backbone."
        )


def has_head(config_dict: dict[str, Any]) -> bool:
    """Return whether a stored configuration belongs to a model with a depth head."""
    return own_family(config_dict.get("model_type")) is not None or config_dict.get("depth_head_type") is not None


def check_missing(missing: Iterable[str], config_dict: dict[str, Any], path: str) -> None:
    """Raise ValueError if weights had to be drawn at random, except those of a new head, or of a new camera head."""
    allowed: tuple[str, ...] = ()
    if not has_head(config_dict):
        allowed = (HEAD,)
    elif not (config_dict.get("depth_config") or {}).get("predict_fov"):
        allowed = (CAMERA_HEAD,)
    lost = sorted(name for name in missing if not name.startswith(allowed))
    if lost:
        raise ValueError(
            f"{path} lacks {len(lost)} of the model's weights: {', '.join(lost[:5])}{', ...' * (len(lost) > 5)}. Copy "
            "or download it again. (`output_loading_info=True` loads it all the same and returns what is missing.)"
        )


def tied_together(device_map: dict[str, Any]) -> dict[str, Any]:
    """Return a `device_map` with the output layer on the embedding's device, since they share tied weights."""
    embedding = "model.language_model.embed_tokens"
    named = [name for name in device_map if not name or f"{embedding}.".startswith(f"{name}.")]
    return device_map | {"lm_head": device_map[max(named, key=len)]} if named else device_map


AnyModel: Any = object  # stands for the class after a mixin, for type checkers


class CheckpointMixin(AnyModel):
    """`from_pretrained` that refuses checkpoints whose weights would be drawn at random, or read from pickles."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load a DepthVLM checkpoint, one of the published implementation, or a plain backbone.

        A plain backbone gets a new head, chosen by `depth_config=`. A checkpoint of another family is loaded as that
        family's class. An adapter is applied to its base model, which must pass the same checks.

        Args:
            pretrained_model_name_or_path: As in transformers, like the rest.
            *args: As in transformers.
            **kwargs: As in transformers.

        Raises:
            ValueError: `use_safetensors=False` or an index names other files: pickled weights are never read; the
                backbone is not supported; the checkpoint lacks weights that the model needs, or has fewer layers than
                its config says. With `output_loading_info=True` missing weights are returned instead.
            OSError: There are no safetensors weights, or a file of them is incomplete.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError("DepthVLM reads safetensors alone, never pickle: leave `use_safetensors` out.")
        # Resolved once for all files, as in transformers, and kept so that a training run can record its commit.
        names = ("revision", "token", "local_files_only", "cache_dir")
        origin = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        revision = resolve_revision(pretrained_model_name_or_path, **origin)
        if revision is not None:
            kwargs["revision"] = revision
        path = str(pretrained_model_name_or_path)
        where = {key: kwargs[key] for key in HUB_KWARGS if kwargs.get(key) is not None}
        of_adapter = kwargs.get("adapter_kwargs") or {}
        if pretrained_model_name_or_path is not None and of_adapter is not NO_ADAPTER:
            named = of_adapter.get("_adapter_model_path")  # by an Auto class, beside the model that it is for
            place = (
                where if named is None else {key: where[key] for key in where if key not in ("revision", "subfolder")}
            )
            place |= {key: of_adapter[key] for key in HUB_KWARGS if of_adapter.get(key) is not None}
            adapter = adapter_folder(str(named or path), place)
            if adapter is not None:
                return cls._with_adapter(adapter, path, named is None, *args, **kwargs)
        stored: dict[str, Any] = {}
        if pretrained_model_name_or_path is not None:
            stored, _ = PreTrainedConfig.get_config_dict(path, **where)
        own = cls.class_for(kwargs.get("config"), stored, path)
        if own is not cls:
            return own.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        header = None
        if pretrained_model_name_or_path is not None and kwargs.get("state_dict") is None:
            header = weights_header(path, where, kwargs.get("variant"))
            if header is not None:
                if not wants_info:
                    check_weights(stored, header, path)
                if isinstance(kwargs.get("device_map"), dict) and "lm_head.weight" not in header:
                    kwargs["device_map"] = tied_together(kwargs["device_map"])
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise OSError(
                f"A safetensors file of {pretrained_model_name_or_path} is incomplete or damaged ({error})"
                f"{_damaged_files(pretrained_model_name_or_path)}. Copy or download it again."
            ) from error
        if model.config._name_or_path == path:  # it differs with an adapter's name
            model.config._commit_hash = getattr(revision, "resolved", None)
        if header is not None and not wants_info:
            check_missing(info["missing_keys"], stored, path)
        if stored and not has_head(stored):
            model.start_projectors()
        return (model, info) if wants_info else model

    @classmethod
    def class_for(cls, config: Any, stored: dict[str, Any], path: str) -> Any:
        """Return the class for a checkpoint: this one, or its counterpart for another family.

        Args:
            config: The configuration object given by the caller, or anything else.
            stored: The checkpoint's stored configuration; empty if there is none.
            path: Name of the checkpoint in messages.

        Raises:
            ValueError: Its family is not supported.
        """
        if isinstance(config, PreTrainedConfig):
            stored = {"model_type": config.model_type}
        family = family_of(stored, path) if stored else None
        if family is None or issubclass(cls.config_class, family.config):  # type: ignore[attr-defined]
            return cls
        return family.depth_estimation if cls.main_input_name == "pixel_values" else family.model  # type: ignore[attr-defined]

    @classmethod
    def _with_adapter(cls, adapter: Path, model: str, is_adapter: bool, *args: Any, **kwargs: Any) -> Any:
        """Load a model on its own, so that missing weights are reported, then its adapter.

        Args:
            adapter: The adapter's folder.
            model: Folder or name of the model.
            is_adapter: True if `model` is the adapter's path, which refers to another model unless one lies beside it.
            *args: Those of `from_pretrained`.
            **kwargs: Those of `from_pretrained`.
        """
        name = kwargs.pop("adapter_name", "default")
        if is_adapter and not (Path(model) / CONFIG).is_file():
            settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            model = settings["base_model_name_or_path"]
            kwargs = {key: kwargs[key] for key in kwargs if key != "subfolder"} | {"revision": settings.get("revision")}
        loaded = cls.from_pretrained(model, *args, **kwargs | {"adapter_kwargs": NO_ADAPTER})
        network = loaded[0] if kwargs.get("output_loading_info") else loaded
        if not network._hf_peft_config_loaded:
            network.load_adapter(str(adapter), adapter_name=name)
        return loaded

    @property
    def device(self: Any) -> torch.device:
        """Device for inputs. Weights offloaded by `device_map` are on `meta`; their hooks tell where they run."""
        device = super().device
        if device.type != "meta":
            return device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(place) for place in places if place is not None), device)


def _damaged_files(folder: str | os.PathLike | None) -> str:
    damaged = []
    for file in sorted(Path(folder).glob("*.safetensors")) if folder and Path(folder).is_dir() else []:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            damaged.append(file.name)
    return f": {', '.join(damaged)}" if damaged else ""

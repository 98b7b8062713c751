"""Weights in 8 or 4 bits: bitsandbytes through transformers' own integration, alike on GPUs and CPUs."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration

SCHEMES = ("int8", "int4")
KEPT = ("lm_head", "depth_head")  # in the model's own dtype; so are embeddings, norms and convolutions
_BLOCK = 64  # weights with a common scale in 4 bits
_CPU_ROWS = 32  # rows of a weight that bitsandbytes' 4-bit CPU kernel multiplies at once


def quantization_keywords(
    scheme: str, config: Mapping[str, Any], name: str, given: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that quantise the linear layers of LLM and vision tower.

    Args:
        scheme: `int8`: LLM.int8() (https://arxiv.org/abs/2208.07339), a scale per row of a weight and per token; inputs
            of magnitude 6 or more are multiplied in the model's dtype. `int4`: NF4 (https://arxiv.org/abs/2305.14314),
            a scale per 64 weights, itself in 8 bits. A layer whose rows are no multiple of 64 is not quantised.
        config: The checkpoint's stored configuration.
        name: The checkpoint's folder or name on the Hub.
        given: The caller's keywords of `from_pretrained`.
        origin: Those of them that locate files.

    Raises:
        ValueError: The scheme is not known; `quantization_config` is given too; the checkpoint is quantised already, or
            its experts hold most of its weights, which bitsandbytes leaves as they are.
        ImportError: bitsandbytes or accelerate is not installed.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"`quantize` is {' or '.join(map(repr, SCHEMES))}, got {scheme!r}.")
    if given.get("quantization_config") is not None:
        raise ValueError(f"`quantize={scheme!r}` and `quantization_config` both say how to quantise: give one of them.")
    if stored := config.get("quantization_config"):
        raise ValueError(f"{name} is stored quantised ({stored.get('quant_method')}) already: leave out `quantize`.")
    if "moe" in (kind := str(config.get("model_type"))):
        raise ValueError(
            f"{name} ({kind}) is a mixture of experts. Their weights are no linear layers, so "
            "bitsandbytes would leave most of the model as it is: leave out `quantize`."
        )
    if missing := [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]:
        raise ImportError(f'`quantize` needs {" and ".join(missing)}: pip install "depthvlm[quantize]"')
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each layer and call, about a cast
    bits: dict[str, Any] = {"load_in_8bit": True}
    kept = list(KEPT)
    if scheme == "int4":
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        kept += _straddled(name, origin)
    return {"quantization_config": BitsAndBytesConfig(**bits, llm_int8_skip_modules=kept)}


def _straddled(name: str, origin: Mapping[str, Any]) -> list[str]:
    """Return the linear layers whose rows share blocks, which bitsandbytes 0.50 reads back wrongly on a CPU."""
    config = DepthVLMConfig.from_pretrained(name, **origin)
    network = DepthVLMForConditionalGeneration.class_for(config, {"model_type": config.model_type}, name)
    with torch.device("meta"), no_init_weights():
        layers = network._from_config(config).named_modules()
    return [path for path, layer in layers if type(layer) is torch.nn.Linear and layer.in_features % _BLOCK]


def settle(network: PreTrainedModel, compute_dtype: torch.dtype | None = None) -> None:
    """Bring the layers of bitsandbytes into the form in which they run, if there are any.

    They would do so on their first call, which is not safe when several threads call a new model.

    Args:
        network: The loaded model.
        compute_dtype: Dtype in which 4-bit layers multiply. None: the one of the model's `quantization_config`.
    """
    if getattr(network, "quantization_method", None) != "bitsandbytes":
        return
    if compute_dtype is not None:
        network.config.quantization_config.bnb_4bit_compute_dtype = compute_dtype
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for layer in network.modules():
        if isinstance(layer, Linear4bit):
            if layer.out_features % _CPU_ROWS or layer.in_features % _BLOCK:  # the CPU kernel raises
                layer.support_avx512bf16_for_cpu = False
            layer.compute_dtype = compute_dtype or layer.compute_dtype
        # Without double quantisation, bitsandbytes 0.50 saves a 4-bit layer wrongly once it has run on some CPUs.
        savable = not isinstance(layer, Linear4bit) or getattr(layer.weight, "compress_statistics", False)
        if isinstance(layer, Linear4bit | Linear8bitLt) and savable:
            with torch.no_grad():
                layer(torch.ones(1, layer.in_features, dtype=network.dtype, device=layer.weight.device))

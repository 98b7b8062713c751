"""Pictures for the trackers: image, true depth and prediction side by side, in one range of colours."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.integrations import TensorBoardCallback

from ..modeling_depthvlm.losses_depthvlm import resize_depth
from ..visualize import colorize, depth_range, scale_bar

logger = logging.getLogger(__name__)

MOST_ROWS = 4
TITLE = "depth: image, truth, prediction"


def input_image(patches: Tensor, grid_thw: Sequence[int], image_processor: Any) -> np.ndarray:
    """
    The picture that the model saw, out of Qwen3-VL's patches.

    Args:
        patches (`(h * w, channels * temporal * patch * patch)`): of one image, in the order of merged 2x2 blocks.
        grid_thw: its row of `image_grid_thw`.

    Returns:
        `(H, W, 3)` uint8.
    """
    _, rows, columns = (int(n) for n in grid_thw)
    merge, side = image_processor.merge_size, image_processor.patch_size
    x = patches.float().cpu().view(rows // merge, columns // merge, merge, merge, 3, -1, side, side)[..., 0, :, :]
    x = x.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * side, columns * side, 3)
    x = x * torch.tensor(image_processor.image_std) + torch.tensor(image_processor.image_mean)
    return (x.clamp(0, 1) * 255).round().byte().numpy()


def picture_grid(
    inputs: dict[str, Any], targets: Sequence[Tensor | None], prediction: Sequence[Tensor], image_processor: Any
) -> Image.Image | None:
    """One row per image with depth, four at most: image, truth, prediction, and the scale in metres of both."""
    grids = inputs["image_grid_thw"].tolist()
    patches = inputs["pixel_values"].split([t * h * w for t, h, w in grids])
    rows: list[np.ndarray] = []
    for index, target in enumerate(targets):
        if target is None or len(rows) == MOST_ROWS:
            continue
        image = input_image(patches[index], grids[index], image_processor)
        height, width = image.shape[:2]
        truth = target.float().cpu()
        nearest = torch.nn.functional.interpolate(truth[None, None], size=(height, width), mode="nearest")[0, 0]
        seen = resize_depth(prediction[index].float().cpu()[None], (height, width))[0]
        limits = depth_range(nearest.numpy(), seen.numpy())
        colored = [colorize(depth.numpy(), limits) for depth in (nearest, seen)]
        bar = np.asarray(scale_bar(height, limits))
        rows.append(np.concatenate([image, *colored, bar], axis=1))
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return Image.fromarray(np.concatenate(padded))


def log_picture(trainer: Any, picture: Image.Image) -> None:
    """Send a picture to every tracker that the run reports to, of TensorBoard, Weights & Biases and Trackio."""
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image(TITLE, np.asarray(picture), step, dataformats="HWC")
    if "wandb" in trainer.args.report_to:
        import wandb

        if wandb.run is not None:
            wandb.log({TITLE: wandb.Image(picture)})
    if "trackio" in trainer.args.report_to:
        import trackio

        trackio.log({TITLE: trackio.Image(picture)})

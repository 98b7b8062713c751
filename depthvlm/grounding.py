"""Distances of named objects: boxes from the model's own words, metres from its depth inside them."""

import json
import math
import re
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .inference import DepthPredictor, ImageInput, load, predict
from .prediction import Prediction
from .visualize import valid_mask

# The request of Qwen3-VL's technical report for referring expressions (appendix B); its replies are JSON with
# `bbox_2d`, left, top, right and bottom in thousandths of the picture's width and height.
PROMPT = (
    'Locate every object that matches the description "{what}" in the image. Report bbox coordinates in JSON format.'
)
_UNITS = 1000
_FAMILIES = "qwen3"  # Qwen2.5-VL answers in pixels of the model's input, GLM in a form of its own
_DEPTH_RATIO = 1.25  # of the farthest to the nearest pixel that count as one object
_COLOUR = (255, 64, 32)


@dataclass(frozen=True)
class MeasuredObject:
    """An object in an image and its distance.

    Attributes:
        label: Name of the object in the model's reply.
        box: Left, top, right and bottom in pixels of the image.
        distance: Metres from the camera in a straight line: the median over the object's pixels.
        depth: z-depth in metres, likewise.
        spread: Interquartile range of the distance over the object's pixels, in metres.
        share: Share of the box's pixels that are the object's. If it is small, look at the box: the object is thin, or
            the box is wrong.
    """

    label: str
    box: tuple[float, float, float, float]
    distance: float
    depth: float
    spread: float
    share: float


@dataclass(frozen=True, eq=False)
class Measurement:
    """Objects that match a description, each with its distance.

    Attributes:
        objects: In the order of the reply; empty if it has no box. `prediction.text` is the reply.
        prediction: The prediction of the image, depth and words from one prefill.
    """

    objects: list[MeasuredObject]
    prediction: Prediction

    def record(self) -> dict[str, Any]:
        """Return the content of a JSON file: the objects, the reply, and the camera."""
        return {"objects": [asdict(one) for one in self.objects], **self.prediction.record()}

    def picture(self) -> Image.Image:
        """Return the image with the boxes, labels and distances drawn into it."""
        picture = self.prediction.image.copy()
        size = max(12, max(picture.size) // 50)
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=size)
        for one in self.objects:
            left, top, right, bottom = one.box
            draw.rectangle((left, top, right - 1, bottom - 1), outline=_COLOUR, width=max(2, size // 6))
            text, place = f"{one.label} {one.distance:.2f} m", (left, max(0, top - 1.3 * size))
            draw.rectangle(draw.textbbox(place, text, font=font), fill=_COLOUR)
            draw.text(place, text, fill="white", font=font)
        return picture


def measure(
    image: ImageInput,
    what: str,
    model: str | PathLike[str] | DepthPredictor | None = None,
    *,
    device: str = "auto",
    dtype: Any = "auto",
    max_new_tokens: int = 1024,
    **kwargs: Any,
) -> Measurement:
    """Measure how far the objects are that a description names; boxes and depth come from one prefill.

    The model is asked for boxes in the words that Qwen3-VL was taught, so it must still answer them: a checkpoint that
    was trained on depth alone may not.

    Examples:
        >>> import depthvlm
        >>> for chair in depthvlm.measure("photo.jpg", "the red chair", "CHECKPOINT", fov=60).objects:
        ...     print(chair.label, chair.box, f"{chair.distance:.2f} m +- {chair.spread / 2:.2f}")

    Args:
        image: One image, see [`predict`].
        what: The description, such as "the red chair" or "all windows".
        model: See [`load`], or its return value. Its backbone must be of Qwen3-VL's or Qwen3.5's family.
        device: See [`load`]; not used with a loaded model.
        dtype: See [`load`]; not used with a loaded model.
        max_new_tokens: Greatest length of the reply; a box takes about 40.
        **kwargs: `focal_length`, `fov`, `intrinsics` or `camera`, `refine`, and keywords of `generate`: see
            [`DepthPredictor.predict_iter`].

    Raises:
        ValueError: The description is empty or holds a control token, the backbone answers in another form, the reply
            is not of the form asked for, or the image cannot be used.
    """
    if not what.strip() or re.search(r"<\|\w+\|>", what):
        raise ValueError(f"Describe the object in plain words, such as 'the red chair', got {what!r}.")
    loaded = model if isinstance(model, DepthPredictor) else load(model, device, dtype)
    family = loaded.model.config.backbone.model_type
    if not family.startswith(_FAMILIES):
        raise ValueError(
            f"{loaded.name} has the backbone {family}, whose boxes are in another form than those of Qwen3-VL and "
            "Qwen3.5. Ask it by `prompt=`, and read the depth at a position by `prediction.at`."
        )
    prompt = PROMPT.format(what=what.strip())
    [prediction] = predict([image], loaded, prompt=prompt, max_new_tokens=max_new_tokens, **kwargs)
    boxes = parse_boxes(prediction.text or "", prediction.image.size, what.strip())
    return Measurement([measured(prediction, label, box) for label, box in boxes], prediction)


def measured(prediction: Prediction, label: str, box: tuple[float, float, float, float]) -> MeasuredObject:
    """Return the distance of the object in a box.

    A box holds background, and often something in front, too. The object's pixels are those whose depth is in the range
    of a factor of 1.25 that holds the greatest weight, where a pixel weighs more the nearer it is to the middle of the
    box: from 1 there to 0 at the borders, linearly along rows and columns.

    Args:
        prediction: The prediction of the image.
        label: Name of the object.
        box: Left, top, right and bottom in pixels.

    Raises:
        ValueError: There is no depth in the box.
    """
    height, width = prediction.depth.shape
    left, right = (_clipped(edge, width) for edge in (math.floor(box[0]), math.ceil(box[2])))
    top, bottom = (_clipped(edge, height) for edge in (math.floor(box[1]), math.ceil(box[3])))
    inside = slice(top, bottom), slice(left, right)
    depth = prediction.depth[inside]
    valid = valid_mask(depth)
    if not valid.any():
        raise ValueError(f"There is no depth in the box {box} of {label!r}.")
    down, across = (1 - np.abs(2 * (np.arange(n) + 0.5) / n - 1) for n in depth.shape)
    nearest = _heaviest_range(depth[valid].astype(np.float64), (down[:, None] * across)[valid])
    own = valid & (depth >= nearest) & (depth <= nearest * _DEPTH_RATIO)
    distances = np.linalg.norm(prediction.points[inside][own].astype(np.float64), axis=1)
    low, middle, high = np.percentile(distances, (25, 50, 75))
    return MeasuredObject(
        label=label,
        box=box,
        distance=float(middle),
        depth=float(np.median(depth[own])),
        spread=float(high - low),
        share=float(own.mean()),
    )


def _clipped(edge: int, length: int) -> int:
    return min(max(edge, 0), length)


def _heaviest_range(depth: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Return the near end of the range of `_DEPTH_RATIO` with the greatest weight; of equal ones the nearest."""
    order = np.argsort(depth)
    depth = depth[order]
    total = np.concatenate([[0.0], np.cumsum(weight[order])])
    ends = np.searchsorted(depth, depth * _DEPTH_RATIO, side="right")
    return float(depth[np.argmax(total[ends] - total[:-1])])


def parse_boxes(
    reply: str, size: tuple[int, int], label: str = "object"
) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Return the label and box of each object in a reply of Qwen3-VL's form, in pixels.

    The form is `[{"bbox_2d": [x1, y1, x2, y2], "label": ...}, ...]`, in thousandths of the picture's width and height;
    one object without the list, several such values, and text or code fences around them are accepted.

    Args:
        reply: The reply. Without a bracket or brace, or with an empty list, it has no box.
        size: Width and height of the picture in pixels.
        label: Label of an object without one.

    Raises:
        ValueError: The JSON is broken off or malformed, or a box is not of this form; the message has the reply.
    """
    entries: list[Any] = []
    position = 0
    while start := re.search(r"[\[{]", reply[position:]):
        try:
            value, position = json.JSONDecoder().raw_decode(reply, position + start.start())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"The reply is not JSON ({error}): {reply!r}. If it is broken off, raise `max_new_tokens`."
            ) from None
        entries += value if isinstance(value, list) else [value]
    boxes = []
    for entry in entries:
        box = entry.get("bbox_2d") if isinstance(entry, dict) else None
        try:
            left, top, right, bottom = (float(edge) for edge in box or ())
        except (TypeError, ValueError):
            left = top = right = bottom = math.nan
        if not (0 <= left < right <= _UNITS and 0 <= top < bottom <= _UNITS):
            raise ValueError(
                f"The reply has {entry!r}, which is no box: {reply!r}. Expected "
                '{"bbox_2d": [x1, y1, x2, y2], "label": ...} '
                f"with 0 <= x1 < x2 <= {_UNITS} and 0 <= y1 < y2 <= {_UNITS}."
            )
        width, height = (side / _UNITS for side in size)
        boxes.append((str(entry.get("label", label)), (left * width, top * height, right * width, bottom * height)))
    return boxes

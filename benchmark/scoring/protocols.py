"""Protocols: the conventions of an evaluation under a name and a hash; alignment of predictions to the truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Array, Mask, answered, answers, valid_truth

Alignment: TypeAlias = Literal["none", "median", "scale", "scale_shift", "scale_shift_disparity"]
ALIGNMENTS: tuple[str, ...] = get_args(Alignment)
Coordinates: TypeAlias = Literal["depth", "published"]
DepthType: TypeAlias = Literal["z", "ray", "ray_truth"]
Crop: TypeAlias = Literal["nyu-eigen", "kitti-garg", "kitti-eigen"]
Aggregation: TypeAlias = Literal["images", "pixels"]

# Rows and columns, last one excluded, of a 480x640 map (Eigen et al. 2014).
NYU_EIGEN_CROP = (45, 471, 41, 601)
# First and last row, first and last column, as shares of height and width, rounded down. Garg et al. 2016; for Eigen
# et al. 2014 the fractions with which Godard et al. 2017 reproduced their numbers.
KITTI_CROPS = {
    "kitti-garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "kitti-eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
# Height and width of the bottom centre crop with which KITTI's depth benchmark unifies images of different drives.
KB_CROP = (352, 1216)

_CHOICES: dict[str, tuple[Any, ...]] = {
    "depth_type": get_args(DepthType),
    "crop": (None, *get_args(Crop)),
    "alignment": get_args(Alignment),
    "aggregation": get_args(Aggregation),
    "coordinates": get_args(Coordinates),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Conventions behind a number.

    Raises:
        ValueError: A value is not among the choices, the range is empty, `points` is below 1, or sampled points are
            combined with a crop.
    """

    name: str  # of the preset, with its changes
    points: int | None = None  # number of points scored in each image; None for all valid pixels
    # "z" for depth along the optical axis, "ray" for distance along the viewing ray, "ray_truth" for distances in the
    # truth alone, against answers in z, as in the published labels of Argoverse 2 and Waymo.
    depth_type: DepthType = "z"
    # Range of the truth in metres (z) that is scored. Both bounds are excluded, as in the programs of these protocols.
    # None takes the bound of the source, which is included.
    min_depth: float | None = None
    max_depth: float | None = None
    crop: Crop | None = None  # part of the image that is scored, or None for all of it
    # Cut the map to KITTI's benchmark size first (352x1216, bottom and centre), to which the fractions of `crop` refer.
    kb_crop: bool = False
    alignment: Alignment = "none"  # of the prediction to the truth of each image before scoring, see [`fit_alignment`]
    aggregation: Aggregation = "images"  # of the headline number: mean over images, or "pixels", all pixels pooled
    # "depth" reads `pixel_coords` as pixels of the depth map, "published" as the released evaluation does, as if they
    # were pixels of the image.
    coordinates: Coordinates = "depth"
    clip: bool = False  # move answers into the valid range before scoring; failures stay failures
    seed: int = 0  # of the choice of points
    description: str = ""  # in words, and the source; not part of the hash

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"Protocol {self.name!r}: `{field}` must be one of {', '.join(map(repr, choices))}, got "
                    f"{getattr(self, field)!r}."
                )
        for field in ("min_depth", "max_depth"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, float(getattr(self, field)))
        low, high = self.min_depth or 0.0, np.inf if self.max_depth is None else self.max_depth
        if not 0 <= low < high:
            raise ValueError(f"Protocol {self.name!r}: the range from {low} to {high} m holds no depth.")
        if self.points is not None and (not isinstance(self.points, int) or self.points < 1):
            raise ValueError(
                f"Protocol {self.name!r}: `points` must be a whole number from 1, or None for dense, got {self.points}."
            )
        if not isinstance(self.kb_crop, bool):
            raise ValueError(f"Protocol {self.name!r}: `kb_crop` is true or false, got {self.kb_crop!r}.")
        if self.kb_crop and self.crop == "nyu-eigen":
            raise ValueError(
                f"Protocol {self.name!r}: `kb_crop` is for KITTI's images, the crop 'nyu-eigen' for NYUv2's."
            )
        if self.points is not None and (self.crop is not None or self.kb_crop):
            raise ValueError(f"Protocol {self.name!r}: a crop needs a dense map; sampled points are already chosen.")
        if self.points is None and self.coordinates == "published":
            raise ValueError(
                f'Protocol {self.name!r}: `coordinates="published"` is a reading of points; give `points`.'
            )

    def hash(self) -> str:
        """Return 12 hexadecimal digits of the SHA-256 of all fields but `description`, the same on every machine.

        `kb_crop` counts only where it is true, so that results older than this field keep their hash.
        """
        left_out = {"description"} if self.kb_crop else {"description", "kb_crop"}
        content = {name: value for name, value in self.to_dict().items() if name not in left_out}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Return the protocol that [`to_dict`] wrote.

        Raises:
            ValueError: A field is unknown, or the name is missing.
        """
        _check_fields(values)
        if "name" not in values:
            raise ValueError("A protocol needs a `name`.")
        return cls(**values)

    def crop_mask(self, height: int, width: int) -> Mask:
        """Return a mask `(height, width)` that is true inside the crop.

        Raises:
            ValueError: The crop needs a map of 480x640 pixels, or the map is smaller than `kb_crop`.
        """
        inside = mask = np.zeros((height, width), dtype=bool)
        if self.kb_crop:
            if height < KB_CROP[0] or width < KB_CROP[1]:
                raise ValueError(
                    f"`kb_crop` is for KITTI's maps, at least {KB_CROP[0]}x{KB_CROP[1]} pixels (height x width), got "
                    f"{height}x{width}: score KITTI at its own size, or use --change kb_crop=false."
                )
            top, left = height - KB_CROP[0], (width - KB_CROP[1]) // 2
            inside = mask[top:, left : left + KB_CROP[1]]
            height, width = KB_CROP
        if self.crop is None:
            inside[:] = True
            return mask
        if self.crop == "nyu-eigen":
            if (height, width) != (480, 640):
                raise ValueError(
                    f"The crop 'nyu-eigen' is for maps of 480x640 pixels (height x width), got {height}x{width}: score "
                    "NYUv2 at its own size."
                )
            top, bottom, left, right = NYU_EIGEN_CROP
        else:
            shares = KITTI_CROPS[self.crop]
            top, bottom = int(shares[0] * height), int(shares[1] * height)
            left, right = int(shares[2] * width), int(shares[3] * width)
        inside[top:bottom, left:right] = True
        return mask

    def valid_mask(
        self, truth: ArrayLike, source_range: tuple[float, float] | None = None, name: str = "the image"
    ) -> Mask:
        """Return the pixels that are scored: measured, in the valid range and in the crop.

        Args:
            truth: Z-depth in metres, `(H, W)` or, for sampled points, `(n,)`.
            source_range: Range in metres that the source counts as measured, bounds included.
            name: Name of the image for error messages.

        Raises:
            ValueError: No pixel is left (the message names the image), or the crop does not fit.
        """
        metres = np.asarray(truth)
        low, high = source_range or (-np.inf, np.inf)
        inside = metres >= low if self.min_depth is None else metres > self.min_depth
        inside &= metres <= high if self.max_depth is None else metres < self.max_depth
        if self.crop is not None or self.kb_crop:
            if metres.ndim != 2:
                raise ValueError(
                    f"The crop {self.crop or 'kb_crop'!r} needs a truth (H, W), got the shape {metres.shape}."
                )
            inside &= self.crop_mask(*metres.shape)
        return valid_truth(metres, inside, name)

    def prepare(
        self,
        prediction: ArrayLike,
        truth: ArrayLike,
        source_range: tuple[float, float] | None = None,
        ray_factors: ArrayLike | None = None,
        name: str = "the image",
    ) -> tuple[Array, Array, Mask]:
        """Return prediction, truth and mask under this protocol, ready for `MetricAccumulator.add`.

        Args:
            prediction: Z-depth in metres, `(H, W)` or `(n,)`.
            truth: Z-depth in metres, of the same shape.
            source_range: As in [`valid_mask`].
            ray_factors: Distance / z-depth of each pixel (`depthvlm.geometry.ray_factors`); not needed for "z".
            name: Name of the image for error messages.

        Returns:
            Prediction in metres, aligned and clipped, NaN where it failed; truth in metres; and the valid mask. All
            have the given shape. Alignment and clipping come first, in z; then depths become distances along the ray
            where `depth_type` says so.

        Raises:
            ValueError: As in [`valid_mask`]; or the shapes differ, `ray_factors` is missing, or there is no range to
                clip to.
        """
        p, g = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        if p.shape != g.shape:
            raise ValueError(f"The prediction for {name} has the shape {p.shape}, its truth {g.shape}.")
        mask = self.valid_mask(truth, source_range, name)  # not of `g`: a bound in float32 must stay the bound
        bounds = source_range or (None, None)
        low = bounds[0] if self.min_depth is None else self.min_depth
        high = bounds[1] if self.max_depth is None else self.max_depth
        p = np.where(answered(p), p, np.nan)
        if self.alignment != "none":
            p = align(p, g, mask, self.alignment, high)
        if self.clip:
            if low is None or high is None:
                raise ValueError(f"Protocol {self.name!r} clips, but neither it nor the source gives a range.")
            p = np.clip(p, low, high)
        if self.depth_type != "z":
            if ray_factors is None:
                raise ValueError(f"Protocol {self.name!r} scores distances along the ray: give `ray_factors`.")
            factors = np.asarray(ray_factors, dtype=np.float64).reshape(g.shape)
            p, g = (p * factors if self.depth_type == "ray" else p), g * factors
        return p, g, mask


def fit_alignment(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, method: Alignment = "median"
) -> tuple[float, float]:
    """Return the scale and shift that bring a prediction to the truth, fitted over the valid pixels with an answer.

    Args:
        prediction: Metres, as in [`~depthvlm.benchmark.scoring.metrics.answers`].
        truth: Metres of the same shape.
        valid: Boolean mask of the same shape.
        method:
            "none": 1 and 0.
            "median": `median(g) / median(p)` (Zhou et al. 2017).
            "scale": the s that minimises `sum (s p - g)^2`.
            "scale_shift": the s and t that minimise `sum (s p + t - g)^2`.
            "scale_shift_disparity": the s and t that minimise `sum (s / p + t - 1 / g)^2` (Ranftl et al. 2020).

    Returns:
        Scale and shift, of the disparity in 1/m for the last method and of the depth in metres for the others. For a
        constant prediction the affine methods give the scale 0. Without any answer: 1 and 0.

    Raises:
        ValueError: The method is unknown, the shapes differ, or the truth has no valid pixel.
    """
    if method not in ALIGNMENTS:
        raise ValueError(f"Unknown alignment {method!r}: choose one of {', '.join(ALIGNMENTS)}.")
    p, g, _ = answers(prediction, truth, valid)
    if method == "none" or p.size == 0:
        return 1.0, 0.0
    if method == "median":
        return float(np.median(g) / np.median(p)), 0.0
    if method == "scale":
        return float(p @ g / (p @ p)), 0.0
    if method == "scale_shift_disparity":
        p, g = 1 / p, 1 / g
    p_mean, g_mean = p.mean(), g.mean()
    centred = p - p_mean
    variance = centred @ centred
    # The rounding by which a constant differs from its mean must not become a slope.
    constant = variance <= p.size * (np.finfo(np.float64).eps * p_mean) ** 2
    scale = 0.0 if constant else float(centred @ (g - g_mean) / variance)
    return scale, float(g_mean - scale * p_mean)


def align(
    prediction: ArrayLike,
    truth: ArrayLike,
    valid: ArrayLike | None = None,
    method: Alignment = "median",
    max_depth: float | None = None,
) -> Array:
    """Return the prediction after [`fit_alignment`].

    Any metric of it is the scale-invariant ("median", "scale") or affine-invariant ("scale_shift",
    "scale_shift_disparity") variant of that metric.

    At `max_depth` metres "scale_shift_disparity" cuts, so that a disparity fitted at or below zero becomes this depth
    (Ranftl et al. 2020). Without it such a pixel is infinitely far, and a failure.

    Returns:
        Metres of the shape of the prediction, float64; NaN where there was no answer. A fitted depth may be zero or
        negative: the metrics count it as a failure unless it is clipped to a range first.

    Raises:
        ValueError: As in [`fit_alignment`], or `max_depth` is not positive.
    """
    if max_depth is not None and not max_depth > 0:
        raise ValueError(f"`max_depth` must be above 0 metres, got {max_depth}.")
    scale, shift = fit_alignment(prediction, truth, valid, method)
    metres = np.asarray(prediction, dtype=np.float64)
    metres = np.where(answered(metres), metres, np.nan)
    if method != "scale_shift_disparity":
        return scale * metres + shift
    disparity = scale / metres + shift
    if max_depth is not None:
        disparity = np.maximum(disparity, 1 / max_depth)
    positive = disparity > 0
    return np.where(positive, 1 / np.where(positive, disparity, 1.0), np.where(np.isnan(metres), np.nan, np.inf))


_PRESETS = (
    Protocol(
        name="depthvlm",
        points=10,
        description="The paper's (section 4.1, appendix A), done right: delta1 at 10 points an image, each read where "
        "it lies, mean over images; failures are wrong.",
    ),
    Protocol(
        name="depthvlm-published",
        points=10,
        coordinates="published",
        description="As `depthvlm`, but points of the depth map are read as if they were pixels of the image, as the "
        "released evaluation does, to compare with its numbers. That evaluation also drops answers of zero and below; "
        "here they are wrong. Its truth of Argoverse 2 and Waymo is the distance along the ray: there with "
        '`depth_type="ray_truth"`.',
    ),
    Protocol(
        name="depthlm",
        points=10,
        aggregation="pixels",
        seed=42,
        description="DepthLM (Cai et al. 2025): single points, delta1 over all answers pooled, seed 42 as in its "
        "released evaluation; 10 points an image as in the tables of DepthVLM.",
    ),
    Protocol(
        name="nyu-eigen",
        min_depth=1e-3,
        max_depth=10,
        crop="nyu-eigen",
        clip=True,
        description="NYUv2, 654 test images: Eigen et al. 2014's crop, truth from 1 mm to 10 m, answers clipped to it, "
        "as Lee et al. 2019 (BTS) and their successors evaluate on the raw depth (`nyuv2` as it is built by default).",
    ),
    Protocol(
        name="kitti-garg",
        min_depth=1e-3,
        max_depth=80,
        crop="kitti-garg",
        kb_crop=True,
        clip=True,
        description="KITTI, Eigen split: Garg et al. 2016's crop of the benchmark's 352x1216 pixels, truth from 1 mm "
        "to 80 m, answers clipped to it, as Bhat et al. 2021 (AdaBins) and their successors evaluate on the improved "
        'ground truth. Self-supervised systems evaluate with `alignment="median"` on whole images: `kb_crop=False`.',
    ),
    Protocol(
        name="kitti-eigen",
        min_depth=1e-3,
        max_depth=80,
        crop="kitti-eigen",
        clip=True,
        description="KITTI, Eigen split: Eigen et al. 2014's crop by the fractions of Godard et al. 2017, truth from "
        "1 mm to 80 m, answers clipped to it.",
    ),
    Protocol(name="dense", description="All valid pixels in the source's own range, metres as they are."),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PRESETS}
"""Presets by name; `description` says what each is and where it comes from."""


def get_protocol(name: str, /, **changes: Any) -> Protocol:
    """Return a preset with some fields changed; the name of the result lists the changes.

    Raises:
        ValueError: The preset or field does not exist (the message lists the choices), or a value does not fit.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}.")
    _check_fields(changes)
    preset = PROTOCOLS[name]
    changed = {field: value for field, value in changes.items() if getattr(preset, field) != value}
    if changed and "name" not in changed:
        listed = ", ".join(f"{field}={value}" for field, value in sorted(changed.items()) if field != "description")
        changed["name"] = f"{name}({listed})" if listed else name
    return replace(preset, **changed)


def _check_fields(names: Mapping[str, Any] | Sequence[str]) -> None:
    known = [field.name for field in fields(Protocol)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"A protocol has no field {', '.join(map(repr, unknown))}, only {', '.join(known)}.")

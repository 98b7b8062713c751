"""What exactly is scored: the conventions of an evaluation, under a name and with a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from .alignment import Alignment, align
from .error_sums import Array, Mask, answered, valid_truth
from .point_coordinates import Coordinates

DepthType: TypeAlias = Literal["z", "ray", "ray_truth"]
Crop: TypeAlias = Literal["nyu-eigen", "kitti-garg", "kitti-eigen"]
Aggregation: TypeAlias = Literal["images", "pixels"]

# Rows and columns, last one excluded, of a 480x640 map (Eigen et al. 2014).
NYU_EIGEN_CROP = (45, 471, 41, 601)
# First and last row, first and last column, as shares of height and width, rounded down. Garg et al. 2016; for Eigen
# et al. 2014 the fractions that Godard et al. 2017 found to give their numbers back.
KITTI_CROPS = {
    "kitti-garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "kitti-eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
# Height and width of the bottom centre crop to which KITTI's depth benchmark brings images of different drives.
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
    """
    The conventions behind a number.

    Args:
        name: of the preset, with its changes.
        points: scored in each image; None for all valid pixels.
        depth_type: "z", along the optical axis; "ray", along the viewing ray; or "ray_truth": the truth alone along the
            ray, against answers in z, as the published labels of Argoverse 2 and Waymo have it.
        min_depth, max_depth: truth in metres (z) that is scored, both excluded as in the programs of these protocols;
            None for the bound of the source, included.
        crop: part of the image that is scored, or None for all of it.
        kb_crop: whether the map is cut to KITTI's benchmark size first (352x1216, the bottom and the middle), so that
            the fractions of `crop` are of that size.
        alignment: of the prediction to the truth of each image before scoring, see
            [`~depthvlm.benchmark.scoring.alignment`].
        aggregation: of the headline number: "images", the mean over images, or "pixels", all pixels pooled.
        coordinates: "depth": `pixel_coords` are pixels of the depth map, as they are. "published": the reading of the
            paper's released evaluation, as if they were pixels of the image.
        clip: whether answers are moved into the valid range before scoring. Failures stay failures.
        seed: of the choice of points.
        description: in words, with the source; not part of the hash.

    Raises:
        ValueError: a value that is not among the choices, an empty range, points below 1, or a crop of sampled points.
    """

    name: str
    points: int | None = None
    depth_type: DepthType = "z"
    min_depth: float | None = None
    max_depth: float | None = None
    crop: Crop | None = None
    kb_crop: bool = False
    alignment: Alignment = "none"
    aggregation: Aggregation = "images"
    coordinates: Coordinates = "depth"
    clip: bool = False
    seed: int = 0
    description: str = ""

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
                f"Protocol {self.name!r}: `kb_crop` is of KITTI's images, the crop 'nyu-eigen' of NYUv2's."
            )
        if self.points is not None and (self.crop is not None or self.kb_crop):
            raise ValueError(f"Protocol {self.name!r}: a crop is of a dense map; sampled points are already chosen.")
        if self.points is None and self.coordinates == "published":
            raise ValueError(
                f'Protocol {self.name!r}: `coordinates="published"` is a reading of points; give `points`.'
            )

    def hash(self) -> str:
        """
        12 hexadecimal digits of the SHA-256 of all fields but `description`, the same on every machine.

        `kb_crop` counts only where it is true, so that results from before it was there keep their hash.
        """
        left_out = {"description"} if self.kb_crop else {"description", "kb_crop"}
        content = {name: value for name, value in self.to_dict().items() if name not in left_out}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """The protocol of [`to_dict`]. Raises ValueError for a field that is unknown, or a missing name."""
        _check_fields(values)
        if "name" not in values:
            raise ValueError("A protocol needs a `name`.")
        return cls(**values)

    def crop_mask(self, height: int, width: int) -> Mask:
        """
        True inside the crop, `(height, width)`.

        Raises:
            ValueError: the crop is of 480x640 maps, and this is none; the map is smaller than `kb_crop`.
        """
        mask = np.zeros((height, width), dtype=bool)
        inside = mask
        if self.kb_crop:
            if height < KB_CROP[0] or width < KB_CROP[1]:
                raise ValueError(
                    f"`kb_crop` is of KITTI's maps, at least {KB_CROP[0]}x{KB_CROP[1]} pixels (height x width), got "
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
                    f"The crop 'nyu-eigen' is of maps of 480x640 pixels (height x width), got {height}x{width}: score "
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
        """
        What is scored: measured, in the valid range and in the crop.

        Args:
            truth: z-depth in metres, `(H, W)` or, of sampled points, `(n,)`.
            source_range: metres that the source counts as measured, included.
            name: of the image, for messages.

        Raises:
            ValueError: nothing is left (it names the image), or the crop does not fit.
        """
        metres = np.asarray(truth)
        inside = np.ones(metres.shape, dtype=bool)
        if self.min_depth is not None:
            inside &= metres > self.min_depth
        elif source_range is not None:
            inside &= metres >= source_range[0]
        if self.max_depth is not None:
            inside &= metres < self.max_depth
        elif source_range is not None:
            inside &= metres <= source_range[1]
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
        """
        Return prediction and truth under this protocol, as
        [`~depthvlm.benchmark.scoring.metrics.MetricAccumulator.add`] takes them.

        Args:
            prediction, truth: z-depth in metres, of one shape, `(H, W)` or `(n,)`.
            source_range: as in [`valid_mask`].
            ray_factors: distance / z-depth of each pixel (`depthvlm.geometry.ray_factors`); not needed by "z".
            name: of the image, for messages.

        Returns:
            Prediction in metres, NaN where it failed, aligned and clipped; truth in metres; and the valid mask. All of
            the shape given, along the ray where `depth_type` says so. Alignment and clipping come first, in z.

        Raises:
            ValueError: as in [`valid_mask`]; the shapes differ; no `ray_factors`; nothing to clip to.
        """
        p, g = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        if p.shape != g.shape:
            raise ValueError(f"The prediction for {name} has the shape {p.shape}, its truth {g.shape}.")
        mask = self.valid_mask(truth, source_range, name)  # in its own dtype: a bound is a bound in float32 too
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


def _presets(*protocols: Protocol) -> dict[str, Protocol]:
    return {protocol.name: protocol for protocol in protocols}


PROTOCOLS = _presets(
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
"""The presets by name; each says in `description` what it is and whose."""


def get_protocol(name: str, /, **changes: Any) -> Protocol:
    """
    A preset, with some fields changed; the name of the result then lists the changes.

    Raises:
        ValueError: no such preset or field, with those that there are, or a value that does not fit.
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

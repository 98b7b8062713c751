"""
How much the depth of static points flickers in clips, predicted frame by frame and with `steady`, and what it costs.

    python scripts/nano/video_steadiness.py --scenes 2

Clips are rendered along camera paths through held-out scenes, each frame with noise of its own. The camera stands
still, with steady or with flickering light; pans by 20 degrees; goes forward; goes sideways; walks, with its sway; or
an object passes before a camera that stands still. A point's way through the frames is known from the renderer.

flicker: root mean square of the change from one frame to the next of log(predicted / true depth), along the ways of
static points. typical: the median of its absolute value, which edges do not dominate. drift: their standard deviation
over the clip. All three are ratios to frame by frame; then comes the error of all pixels. At the end, a clip of many
short shots: how many cuts come out with the depth of frame by frame, and how many frames that are no cuts do.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import typer
from depthvlm.benchmark.synthetic import HELD_OUT, SyntheticScene, render_scene
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from depthvlm import DepthPredictor, load, predict_video
from depthvlm.ego_motion import sample

CameraPath = Literal["still", "light", "pan", "forward", "sideways", "walk", "object"]

SIZE = {"width": 192, "height": 160, "fov": 60.0}
FIRST_SEED = HELD_OUT + 2000


class Clip(NamedTuple):
    """A rendered clip: pictures `(T, H, W, 3)`, true depth `(T, H, W)`, poses `(T, 4, 4)` and the focal length."""

    pictures: np.ndarray
    depth: np.ndarray
    poses: np.ndarray
    focal_length: float


Scores = dict[str, float]  # flicker, typical change and drift of the logarithm of depth; abs_rel and delta1


def main(
    model: Annotated[str | None, typer.Option(help="Checkpoint; the bundled nano by default.")] = None,
    scenes: Annotated[int, typer.Option(help="Scenes for every path, of each kind.")] = 2,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 18,
    ahead: Annotated[list[int] | None, typer.Option(help="Values of `steady`.")] = None,
    shots: Annotated[int, typer.Option(help="Shots of the clip with cuts, 3 frames each.")] = 40,
) -> None:
    """Print flicker and errors by path, and what becomes of cuts."""
    network, values = load(model), ahead or [0, 2]
    console = Console(width=260)  # numbers are never cut off
    results: dict[int, list[tuple[Scores, Scores]]] = {value: [] for value in values}
    columns = ["path", "flicker frame by frame"]
    for value in values:
        columns += [f"steady {value}: flicker", "typical", "drift", "abs_rel", "delta1"]
    table = Table(*columns)
    for kind in ("room", "street"):
        for number, path in enumerate(track(get_args(CameraPath), description=kind, console=Console(stderr=True))):
            seeds = range(FIRST_SEED + 100 * number, FIRST_SEED + 100 * number + scenes)
            clips = [render_clip(seed, kind, path, frames) for seed in seeds]
            alone = [score(clip, predicted(network, clip, None)) for clip in clips]
            row = [f"{kind}, {path}", " ".join(f"{one['flicker']:.4f}" for one in alone)]
            for value in values:
                pairs = list(zip([score(clip, predicted(network, clip, value)) for clip in clips], alone, strict=True))
                results[value] += pairs
                row += [" ".join(f"{a:.2f}" for a in ratios(pairs, name)) for name in ("flicker", "typical", "drift")]
                row += [" ".join(f"{b['abs_rel']:.4f}>{a['abs_rel']:.4f}" for a, b in pairs)]
                row += [" ".join(f"{b['delta1']:.4f}>{a['delta1']:.4f}" for a, b in pairs)]
            table.add_row(*row)
    console.print(f"{network.name}, {SIZE['width']}x{SIZE['height']}, {frames} frames a clip, {scenes} scenes a path")
    console.print(table)
    for value in values:
        summarise(console, value, results[value])
        console.print(f"steady {value}: {cuts(network, shots, value)}")


def ratios(pairs: list[tuple[Scores, Scores]], name: str) -> list[float]:
    """The ratio of a score with `steady` to that without, for every clip."""
    return [a[name] / b[name] for a, b in pairs]


def summarise(console: Console, value: int, pairs: list[tuple[Scores, Scores]]) -> None:
    """Print means and the worst over all clips."""
    parts = []
    for name in ("flicker", "typical", "drift", "abs_rel"):
        all_of = ratios(pairs, name)
        parts.append(f"{name} x{np.mean(all_of):.2f} (worst {max(all_of):.3f})")
    under = sum(ratio <= 0.5 for ratio in ratios(pairs, "flicker"))
    change = [a["delta1"] - b["delta1"] for a, b in pairs]
    parts.append(f"delta1 {np.mean(change):+.4f} (worst {min(change):+.4f})")
    console.print(f"steady {value}: {under} of {len(pairs)} clips at most 0.5; {', '.join(parts)}")


def render_clip(seed: int, kind: str, path: str, frames: int, first: int | None = None) -> Clip:
    """Render the `first` frames of a clip along a path, by default all."""
    shown: list[SyntheticScene] = []
    pictures, depths = [], []
    flicker = np.random.default_rng(seed).normal(1, 0.06, frames)
    for t in range(first or frames):
        scene = render_scene(seed, kind=kind, motion=pose(path, kind, t, frames), frame=t, **SIZE)  # type: ignore[arg-type]
        picture, depth = scene.image, scene.depth
        if path == "light":
            picture = np.clip(np.round(picture * flicker[t]), 0, 255).astype(np.uint8)
        elif path == "object":
            aside = render_scene(seed, kind=kind, motion=pose("pass", kind, t, frames), frame=t, **SIZE)  # type: ignore[arg-type]
            largest = max(scene.objects, key=lambda item: item.visible if item.size[2] else 0)
            names = [(item.name, item.color) for item in aside.objects]
            same = [index for index, name in enumerate(names) if name == (largest.name, largest.color)]
            mask = np.isin(aside.segments, same) & ((depth == 0) | (aside.depth < depth))
            picture, depth = np.where(mask[..., None], aside.image, picture), np.where(mask, aside.depth, depth)
        shown.append(scene)
        pictures.append(picture)
        depths.append(depth)
    poses = np.stack([scene.camera_to_world for scene in shown])
    return Clip(np.stack(pictures), np.stack(depths), poses, shown[0].focal_length)


def pose(path: str, kind: str, t: int, frames: int) -> np.ndarray:
    """Pose `(4, 4)` of the camera in frame `t`, in that of the scene's own camera."""
    share, is_room, step = t / (frames - 1), kind == "room", 2 * np.pi * t
    result = np.eye(4)
    if path == "pan":
        result[:3, :3] = _rotation(np.radians(-10 + 20 * share), 0, 0)
    elif path == "forward":
        result[2, 3] = (0.8 if is_room else 3.0) * share
    elif path == "sideways":
        result[0, 3] = (0.6 if is_room else 2.0) * (share - 0.5)
    elif path == "pass":
        result[0, 3] = (1.2 if is_room else 3.0) * (share - 0.5)
    elif path == "walk":  # a step takes 6 frames: 3 cm up and down, 2 cm and a degree from side to side
        result[:3, 3] = 0.02 * np.sin(step / 12), 0.03 * np.sin(step / 6), (0.6 if is_room else 1.4) * share
        turn = (6 * share + 0.8 * np.sin(step / 12), 0.7 * np.sin(step / 6 + 1), 0.5 * np.sin(step / 12))
        result[:3, :3] = _rotation(*np.radians(turn))
    return result


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return about_y @ about_x @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])


def predicted(network: DepthPredictor, clip: Clip, steady: int | None) -> np.ndarray:
    """Depth `(T, H, W)` in metres from the files that `predict_video` writes."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "frames"
        source.mkdir()
        for index, picture in enumerate(clip.pictures):
            Image.fromarray(picture).save(source / f"{index:04d}.png")
        options: dict[str, Any] = {"focal_length": clip.focal_length, "batch_size": 6, "steady": steady}
        result = predict_video(source, Path(folder) / "out", network, **options)
        maps = []
        for path in sorted(result.files.depth.glob("*.png")):
            with Image.open(path) as image:
                maps.append(np.asarray(image) / float(image.text["depth_scale"]))
    return np.stack(maps)


def score(clip: Clip, depth: np.ndarray) -> Scores:
    """Compare predicted depth `(T, H, W)` with the truth."""
    errors = errors_of_points(clip, np.log(depth))
    changes = np.diff(errors, axis=0)
    changes = changes[np.isfinite(changes)]
    valid = clip.depth > 0
    ratio = depth[valid] / clip.depth[valid]
    return {
        "flicker": float(np.sqrt(np.mean(changes**2))),
        "typical": float(np.median(np.abs(changes))),
        "drift": float(np.sqrt(np.mean(np.nanvar(errors, axis=0)))),
        "abs_rel": float(np.mean(np.abs(ratio - 1))),
        "delta1": float(np.mean(np.maximum(ratio, 1 / ratio) < 1.25)),
    }


def errors_of_points(clip: Clip, log_depth: np.ndarray) -> np.ndarray:
    """log(predicted / true depth) `(T, points)` of static points, the middle frame's grid; nan: hidden."""
    count, height, width = clip.depth.shape
    middle = count // 2
    rows, columns = (each.ravel() for each in np.mgrid[4 : height - 4 : 6, 4 : width - 4 : 6])
    z = clip.depth[middle, rows, columns]
    rows, columns, z = rows[z > 0], columns[z > 0], z[z > 0]
    rays = [(columns + 0.5 - width / 2) / clip.focal_length, (rows + 0.5 - height / 2) / clip.focal_length, 1 + 0 * z]
    points = clip.poses[middle, :3, :3] @ (np.stack(rays) * z) + clip.poses[middle, :3, 3:]
    errors = np.full((count, z.size), np.nan)
    for t, (camera, depth) in enumerate(zip(clip.poses, clip.depth, strict=True)):
        x, y, z = camera[:3, :3].T @ (points - camera[:3, 3:])
        z = np.maximum(z, 0.1)
        column, row = x / z * clip.focal_length + width / 2 - 0.5, y / z * clip.focal_length + height / 2 - 0.5
        inverse, inside = sample(np.where(depth > 0, 1 / np.maximum(depth, 0.01), 1e-6), column, row)
        seen = inside & (np.abs(inverse * z - 1) < 0.01)
        errors[t, seen] = (sample(log_depth[t], column, row)[0] - np.log(z))[seen]
    return errors[:, np.isfinite(errors).sum(axis=0) >= count // 3]


def cuts(network: DepthPredictor, shots: int, steady: int) -> str:
    """Say how many cuts between shots of other scenes, and frames that are none, come out as frame by frame."""
    kinds = [("room", "street")[index // 2 % 2] for index in range(shots)]
    paths = [("forward", "walk", "sideways")[index % 3] for index in range(shots)]
    clips = [render_clip(FIRST_SEED + 5000 + index, kinds[index], paths[index], 18, first=3) for index in range(shots)]
    joined = Clip(
        np.concatenate([clip.pictures for clip in clips]),
        np.concatenate([clip.depth for clip in clips]),
        np.concatenate([clip.poses for clip in clips]),
        clips[0].focal_length,
    )
    alone, tied = predicted(network, joined, None), predicted(network, joined, steady)
    same = (alone == tied).all(axis=(1, 2))
    first = np.arange(len(same)) % 3 == 0
    found, others = same[first][1:].sum(), same[~first].sum()
    return f"{found} of {shots - 1} cuts as frame by frame, {others} of {(~first).sum()} other frames"


if __name__ == "__main__":
    typer.run(main)

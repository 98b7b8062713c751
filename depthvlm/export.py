"""Writers of depth maps, point clouds and meshes.

Depth is z-depth in metres. PLY is in the camera's frame of computer vision (x right, y down, z forward); GLB in that of
glTF (x right, y up, looking along -z), so that viewers show the scene the right way up.
"""

import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .files import atomic_write
from .lens import Lens
from .visualize import valid_mask

if TYPE_CHECKING:
    from .processing import Camera


# What the PNG's text says of a `depth_type`.
DEPTH_TYPES = {"z_depth": "z-depth", "ray_distance": "distance along the ray"}
UINT16_MAX = 65535
SPREAD_SCALE = 10000
_MAX_TEXTURE_SIZE = 4096  # supported by every WebGL viewer
_PNG_LEVEL = 4  # zlib level; a third of the time of the default, 6, for 8 % more bytes
_OPENCV_TO_GLTF = np.array([1.0, -1.0, -1.0])


def write_npy(path: Path, depth: NDArray[np.floating]) -> None:
    """Write a depth map `(H, W)` in metres as a float32 `.npy` file."""
    with atomic_write(path) as file:
        np.save(file, depth.astype(np.float32), allow_pickle=False)


def write_npz(path: Path, depth: NDArray[np.floating], camera: "Camera | Lens") -> None:
    """Write a compressed `.npz` of plain arrays.

    They are `depth` `(H, W)` in float32 metres, `K` `(3, 3)` in pixels of the map, the centre of the first pixel at
    (0.5, 0.5), and `focal_source`; of a lens also `lens`, its model, `distortion` and `depth_type`.
    """
    lens: dict[str, Any] = {}
    if isinstance(camera, Lens):
        lens = {"lens": camera.model, "distortion": camera.distortion, "depth_type": camera.depth_type}
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    with atomic_write(path) as file:
        np.savez_compressed(
            file, allow_pickle=False, depth=depth.astype(np.float32), K=matrix, focal_source=camera.source, **lens
        )


def write_pfm(path: Path, depth: NDArray[np.floating]) -> None:
    """Write a depth map `(H, W)` in metres as a portable float map: little-endian, the lowest row first."""
    with atomic_write(path) as file:
        Image.fromarray(depth.astype(np.float32)).save(file, format="PPM")


def write_spread(path: Path, spread: Any) -> None:
    """Write the spread of a depth map `(H, W)` as a 16-bit PNG: relative spread = value / 10000, at most 6.5535.

    Pixels without depth have the largest value.
    """
    units = np.nan_to_num(
        np.clip(np.round(np.asarray(spread, np.float64) * SPREAD_SCALE), 0, UINT16_MAX), nan=UINT16_MAX
    )
    text = PngInfo()
    text.add_text("spread_scale", f"{SPREAD_SCALE}")
    with atomic_write(path) as file:
        Image.fromarray(units.astype(np.uint16)).save(file, format="PNG", pnginfo=text, compress_level=_PNG_LEVEL)


def write_exr(path: Path, depth: NDArray[np.floating]) -> None:
    """Write a depth map `(H, W)` in metres as OpenEXR with the one channel `Z`, float32, losslessly compressed.

    Raises:
        ImportError: The package OpenEXR is not installed.
    """
    require_exr()
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_write(path) as file:
        OpenEXR.File(header, {"Z": np.ascontiguousarray(depth, dtype=np.float32)}).write(file)


def require_exr() -> None:
    """Raise ImportError if OpenEXR files cannot be written."""
    if find_spec("OpenEXR") is None:
        raise ImportError('The format exr needs the package OpenEXR: `pip install "depthvlm[exr]"`.')


def write_normals(path: Path, normals: NDArray[np.float32]) -> None:
    """Write normals `(H, W, 3)` in the camera's frame as a colour map of 8 bits: red right, green up, blue towards it.

    A value is `255 * (n + 1) / 2` of the axes x right, y up and z towards the camera, so that a wall in front of it is
    (128, 128, 255). Where there is no normal the colour is black, which no normal has.
    """
    colours = np.round(255 * (normals * np.array([1, -1, -1], dtype=np.float32) + 1) / 2)
    write_png(path, Image.fromarray(np.where(np.isnan(colours), 0, colours).astype(np.uint8)))


class PngDepth(NamedTuple):
    """Unit of a 16-bit PNG, metres = value / `depth_scale`, and the number of pixels beyond its range."""

    depth_scale: int
    clipped_pixels: int


def write_png16(path: Path, depth: NDArray[np.floating], depth_type: str = "z_depth") -> PngDepth:
    """Write a depth map `(H, W)` in metres, of a `depth_type` of `DEPTH_TYPES`, as a 16-bit PNG.

    Its unit is a millimetre, or 1/256 m if a depth is beyond 65.535 m, as stated by the PNG's text entry `depth_scale`
    (1000 or 256: metres = value / depth_scale). 0 means no depth, so that a depth below half a unit is written as 1.
    Depths beyond 255.996 m are clipped, with a warning, and counted in the result.
    """
    valid = valid_mask(depth)
    units = np.where(valid, depth, np.float64(0))
    scale = 1000 if np.round(units.max(initial=0) * 1000) <= UINT16_MAX else 256
    units *= scale
    np.round(units, out=units)
    clipped = int((units > UINT16_MAX).sum())
    if clipped:
        warnings.warn(
            f"{path.name}: {clipped} of {depth.size} pixels are beyond {UINT16_MAX / scale:.1f} m, the most that a "
            "16-bit PNG holds, and are clipped to it. Save `npy` too where these matter.",
            stacklevel=2,
        )
    np.clip(units, valid.astype(np.uint8), UINT16_MAX, out=units)
    write_png16_values(path, units.astype(np.uint16), scale, depth_type)
    return PngDepth(scale, clipped)


def write_png16_values(path: Path, values: NDArray[np.uint16], depth_scale: int, depth_type: str = "z_depth") -> None:
    """Write values `(H, W)` as a 16-bit PNG whose text says that metres = value / `depth_scale`."""
    text = PngInfo()
    text.add_text("depth_scale", str(depth_scale))
    text.add_text("depth_unit", f"metres = value / {depth_scale}; {DEPTH_TYPES[depth_type]}; 0 = no depth")
    with atomic_write(path) as file:
        Image.fromarray(values).save(file, format="PNG", pnginfo=text, compress_level=_PNG_LEVEL)


def read_png16(path: Path) -> tuple[NDArray[np.uint16], int]:
    """Return the values `(H, W)` of a 16-bit PNG written by `write_png16`, and its `depth_scale`.

    Raises:
        ValueError: The file is not such a PNG.
    """
    from .processing.images_depthvlm import open_raster

    try:
        with open_raster(path) as image:
            scale = int(image.info["depth_scale"])
            values = np.asarray(image)
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} is not a 16-bit depth PNG of depthvlm ({error}).") from None
    return values.astype(np.uint16), scale


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture as PNG."""
    with atomic_write(path) as file:
        image.save(file, format="PNG", compress_level=_PNG_LEVEL)


def write_ply(path: Path, cloud: trimesh.PointCloud) -> None:
    """Write a coloured point cloud as binary PLY, in its own frame (float32 metres, RGBA bytes)."""
    with atomic_write(path) as file:
        file.write(trimesh.exchange.ply.export_ply(cloud))


def write_glb(path: Path, mesh: trimesh.Trimesh, image: Image.Image, camera: "Camera | Lens") -> None:
    """Write a mesh given in the camera's frame as GLB, textured with the image that this camera, or lens, took.

    The texture is an unlit JPEG of at most 4096 pixels a side: the photograph already includes the lighting.
    """
    texture, size = io.BytesIO(), image.size
    image = image.copy()
    image.thumbnail((_MAX_TEXTURE_SIZE, _MAX_TEXTURE_SIZE))
    image.save(texture, format="JPEG", quality=92)

    if isinstance(camera, Lens):
        seen = camera.project(mesh.vertices)
    else:
        x, y, z = mesh.vertices.T
        seen = np.stack([x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy], axis=1)
    uv = np.stack([seen[:, 0] / size[0], 1 - seen[:, 1] / size[1]], axis=1)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.open(texture, formats=["JPEG"]),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    textured = trimesh.Trimesh(
        mesh.vertices * _OPENCV_TO_GLTF,
        mesh.faces,
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material),
        process=False,
    )
    with atomic_write(path) as file:
        file.write(trimesh.exchange.gltf.export_glb(textured, include_normals=False, tree_postprocessor=_make_unlit))


def _make_unlit(tree: dict[str, Any]) -> None:
    for material in tree.get("materials", []):
        material["extensions"] = {"KHR_materials_unlit": {}}
    tree["extensionsUsed"] = ["KHR_materials_unlit"]

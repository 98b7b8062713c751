"""Pictures for the image processors, and what the processors make of them made visible again."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from depthvlm.processing import DepthVLMImageProcessor, DepthVLMImageProcessorPil
from PIL import ExifTags, Image
from transformers.utils import is_torchvision_available

BACKENDS = [DepthVLMImageProcessorPil, *([DepthVLMImageProcessor] if is_torchvision_available() else [])]


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save_picture(path: Path | str, *size: int, seed: int = 0, **options: object) -> Path:
    """Save it, with the folder that it is in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(*size, seed=seed).save(path, **options)
    return path


def png_of(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def png_claiming(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims this size and holds less."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def noise(height: int = 96, width: int = 128, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture with structure at every scale, so that a wrong filter shows."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels)).repeat(8, 0).repeat(8, 1)
    fine = generator.integers(-20, 21, (height, width, channels))
    return np.clip(coarse[:height, :width] + fine, 0, 255).astype(np.uint8)


def exif_of(related: tuple[int, int] | None = None, **tags: object) -> Image.Exif:
    """EXIF data with these tags by name; `related` is the size of which the interoperability tags speak."""
    exif, camera = Image.Exif(), {ExifTags.Base[name]: value for name, value in tags.items()}
    for tag in (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Orientation):
        if tag in camera:
            exif[tag] = camera.pop(tag)
    exif.get_ifd(ExifTags.IFD.Exif).update(camera)
    if related is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: "R98", 0x1001: related[0], 0x1002: related[1]}
    return exif


def to_picture(features, index: int = 0) -> np.ndarray:
    """Undoes patches and normalisation: `(H, W, 3)` grey levels, 0 to 255, of the first frame."""
    grids = torch.as_tensor(features["image_grid_thw"])
    start = int(grids[:index].prod(-1).sum())
    _, rows, columns = grids[index].tolist()
    patches = torch.as_tensor(features["pixel_values"])[start : start + rows * columns]
    patches = patches.view(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)
    assert torch.equal(patches[..., 0, :, :], patches[..., 1, :, :])
    pixels = patches[..., 0, :, :].permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * 16, columns * 16, 3)
    return ((pixels + 1) * 127.5).numpy()


def picture_of(processor, image, **kwargs) -> np.ndarray:
    """The picture that the model sees, at the image's own size."""
    kwargs = {"focal_length": 1000.0} | kwargs
    return np.rint(to_picture(processor(image, return_tensors="pt", **kwargs))).astype(np.uint8)

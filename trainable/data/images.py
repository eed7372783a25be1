"""Image files to arrays of one size. PIL is imported when an image is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainable.data.sources import CHUNK_IMAGES, DataError, Images

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
MAX_PIXELS = 50_000_000  # of one image: the header of a small file can claim any size
TOO_LARGE = f"are more than {MAX_PIXELS / 1e6:g} million pixels each: make them smaller"
UNEQUAL_SIDE_PX = 224  # images of different sizes: resize the short side to this, crop the centre
RESIZED = (
    f"The images differ in size: their short side is resized to {UNEQUAL_SIDE_PX} px and the "
    f"centre of {UNEQUAL_SIDE_PX}x{UNEQUAL_SIDE_PX} px is taken."
)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder itself, by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def all_of_one_size(files: Sequence[Path]) -> bool:
    """Whether the images have one size, by their headers."""
    with ThreadPoolExecutor() as pool:
        return len(set(pool.map(_size_of, files))) <= 1


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            _check_size(str(path), image.size)
            return image.size
    except DataError:
        raise
    except Exception as error:  # decoders fail on broken files in many ways
        raise DataError(f"{path} cannot be decoded: {error}") from error


def file_reader(
    paths: Sequence[Path], unequal: Callable[[], bool] = lambda: False
) -> Callable[[], Iterator[Images]]:
    """The images in chunks; all of them resized to one size if they are `unequal`."""

    def read() -> Iterator[Images]:
        for start in range(0, len(paths), CHUNK_IMAGES):
            chunk = [(str(path), path.read_bytes()) for path in paths[start : start + CHUNK_IMAGES]]
            yield decode(chunk, square=unequal())

    return read


def decode(packed: Sequence[tuple[str, bytes]], *, square: bool = False) -> Images:
    """(N, H, W, 3) from encoded images; with `square` each is resized and cropped to one size.

    Raises:
        DataError: an image cannot be decoded, or they differ in size.
    """

    def one(item: tuple[str, bytes]) -> Images:
        pixels = _decoded(*item)
        return _square(pixels) if square else pixels

    with ThreadPoolExecutor() as pool:  # PIL releases the interpreter's lock while it decodes
        images = list(pool.map(one, packed))
    if not square and len(sizes := {image.shape for image in images}) > 1:
        raise DataError(
            f"the images near {packed[0][0]} differ in size ({sorted(sizes)}): resize them to one "
            f"size"
        )
    return np.stack(images)


def decoded(path: Path, *, mode: str | None = "RGB") -> NDArray[np.uint8]:
    """The pixels of an image file in the mode, such as RGB; None: as they are in the file.

    Raises:
        DataError: it cannot be decoded.
    """
    return _decoded(str(path), path.read_bytes(), mode)


def _decoded(name: str, data: bytes, mode: str | None = "RGB") -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(name, image.size)
            return np.asarray(image.convert(mode) if mode else image)
    except DataError:
        raise
    except Exception as error:  # decoders fail on broken files in many ways
        raise DataError(f"{name} cannot be decoded: {error}") from error


def _check_size(name: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{name}: images of {size[0]}x{size[1]} px {TOO_LARGE}")


def _square(image: Images) -> Images:
    from PIL import Image

    height, width, _ = image.shape
    scale = UNEQUAL_SIDE_PX / min(height, width)
    size = max(UNEQUAL_SIDE_PX, round(width * scale)), max(UNEQUAL_SIDE_PX, round(height * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - UNEQUAL_SIDE_PX) // 2, (size[1] - UNEQUAL_SIDE_PX) // 2
    box = (left, top, left + UNEQUAL_SIDE_PX, top + UNEQUAL_SIDE_PX)
    return np.asarray(resized.crop(box))

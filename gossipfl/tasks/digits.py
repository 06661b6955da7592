"""The embedded default task: scikit-learn's 1,797 real 8x8 images of handwritten digits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gossipfl.errors import ConfigError
from gossipfl.tasks.classification import ClassificationTask, Examples, NumpySoftmaxTask, stratified_split
from gossipfl.tasks.models import Softmax, mlp, small_cnn, widths

PIXELS, CLASSES = 64, 10
TEST_SHARE = 0.2
SPLIT_SEED = 20240610
"""The held-out images are the same in every run, so that runs with different seeds can be compared."""

MODELS = ("mlp", "softmax", "softmax-numpy", "cnn")


def load(*, model: str = "mlp", hidden: object = 64) -> ClassificationTask:
    """Return the task: pixels 0..16 are scaled to [-2, 2], and a fifth of each class is held out.

    The images are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI,
    1998). Raises ConfigError for an unknown model or impossible layer widths.
    """
    pixels, labels = _images()
    images = (pixels / 4 - 2).astype(np.float32)
    train, test = stratified_split((images, labels.astype(np.int64)), TEST_SHARE, SPLIT_SEED)
    return _with_model(train, test, model, hidden)


def _images() -> Examples:
    """Return pixels (n, 64) and labels (n,), from scikit-learn's own file.

    Importing scikit-learn for it would take as long as importing torch, so only a version that keeps its file
    elsewhere is asked by its function.
    """
    found = find_spec("sklearn")
    folders = found.submodule_search_locations if found is not None else None
    path = Path(next(iter(folders or ()), ""), "datasets", "data", "digits.csv.gz")
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    source = load_digits()
    return source.data, source.target


def _with_model(train: Examples, test: Examples, model: str, hidden: object) -> ClassificationTask:
    sizes = widths(hidden)
    match model:
        case "mlp":
            return ClassificationTask("digits", train, test, lambda _: mlp(PIXELS, sizes, CLASSES))
        case "softmax":
            return ClassificationTask("digits", train, test, lambda _: Softmax(PIXELS, CLASSES))
        case "softmax-numpy":
            return NumpySoftmaxTask("digits", train, test, lambda _: Softmax(PIXELS, CLASSES))
        case "cnn":
            train, test = ((inputs.reshape(-1, 1, 8, 8), labels) for inputs, labels in (train, test))
            return ClassificationTask("digits", train, test, lambda _: small_cnn(CLASSES))
        case _:
            raise ConfigError(f'digits model "{model}" is unknown; choose one of: {", ".join(MODELS)}')

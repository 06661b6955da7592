"""A model as one flat float32 vector, and the layout that names its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from gossipfl.digest import digest
from gossipfl.errors import LayoutError

LAYOUT_MAGIC = b"gossipfl layout 1\n"
"""First bytes of the canonical encoding; a new encoding gets a new number."""

Buffers = Literal["local", "shared"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a layout: its ``name``, its ``shape`` (a scalar has shape ()), and its ``dtype``."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The order, names and shapes of the tensors that a flat vector holds, back to back without padding.

    Two models can be averaged exactly when their layouts' digests are equal. Raises LayoutError where a
    name occurs twice, a dimension is negative, or a dtype is not float32.
    """

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for entry in self.entries:
            if entry.name in seen:
                raise LayoutError(f'layout entry "{entry.name}" occurs twice; give each tensor its own name')
            if entry.dtype != "float32":
                raise LayoutError(
                    f'layout entry "{entry.name}" is {entry.dtype}; convert it to float32 (model.float())'
                )
            if any(length < 0 for length in entry.shape):
                raise LayoutError(f'layout entry "{entry.name}" has a negative dimension: {entry.shape}')
            seen.add(entry.name)

    @cached_property
    def size(self) -> int:
        """Number of float32 values d of the flat vector."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def encoding(self) -> bytes:
        """The canonical bytes under ``digest``, computable in any language.

        ``LAYOUT_MAGIC``, then the number of entries, then each entry in order: byte length of the name, the
        name in UTF-8, byte length of the dtype, the dtype in ASCII, the number of dimensions, each
        dimension. All numbers are unsigned 64-bit little-endian.
        """
        parts = [LAYOUT_MAGIC, _number(len(self.entries))]
        for entry in self.entries:
            name, dtype = entry.name.encode(), entry.dtype.encode("ascii")
            parts += [_number(len(name)), name, _number(len(dtype)), dtype, _number(len(entry.shape))]
            parts += [_number(length) for length in entry.shape]
        return b"".join(parts)

    @cached_property
    def digest(self) -> bytes:
        """The 32-byte BLAKE3 digest of ``encoding``."""
        return digest(self.encoding)

    def slices(self) -> Iterator[tuple[Entry, slice]]:
        """Yield each entry with the part of the flat vector that holds it."""
        start = 0
        for entry in self.entries:
            yield entry, slice(start, start + entry.size)
            start += entry.size

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of ``vector`` (d,), shaped and named as the model's tensors."""
        if vector.shape != (self.size,):
            raise LayoutError(f"the layout holds {self.size} values; the vector's shape is {tuple(vector.shape)}")
        return {entry.name: vector[part].view(entry.shape) for entry, part in self.slices()}


@dataclass(frozen=True, slots=True)
class FlatModel:
    """A module whose trainable parameters live in one vector, and their gradients in another.

    ``vector`` (d,) and ``gradient`` (p,) are float32 on the module's device. Values [0, p) of ``vector``
    are the trainable parameters; values [p, d) are shared buffers, present only under ``buffers="shared"``.
    Writing into ``vector`` in place changes the module, and ``load_state_dict`` changes ``vector``;
    ``module.to(...)`` and ``zero_grad(set_to_none=True)`` would cut them apart, which ``verify`` finds.
    """

    module: nn.Module
    layout: Layout
    vector: Tensor
    gradient: Tensor

    @property
    def parameters(self) -> Tensor:
        """The trainable part of ``vector``, a view of shape (p,)."""
        return self.vector[: self.gradient.numel()]

    def verify(self) -> None:
        """Raise LayoutError where a tensor of the module is no view of ``vector`` or ``gradient`` any more."""
        state = _tensors(self.module, "shared")
        gradient_start = self.gradient.data_ptr()
        for entry, part in self.layout.slices():
            tensor = state.get(entry.name)
            if tensor is None or tensor.data_ptr() != self.vector[part].data_ptr():
                raise LayoutError(f'"{entry.name}" left the flat vector; move a model before it is flattened')
            if part.stop <= self.gradient.numel() and (
                tensor.grad is None or tensor.grad.data_ptr() != gradient_start + 4 * part.start
            ):
                raise LayoutError(f'the gradient of "{entry.name}" left the flat vector; zero it in place')


def flatten(model: nn.Module, *, buffers: Buffers = "local") -> FlatModel:
    """Move a model's parameters into one contiguous vector and leave views in their place.

    Tied parameters are stored once, under the name found first. Parameters that do not require a gradient
    are equal at every site and stay out. Buffers such as batch-norm statistics describe one site's data:
    under ``"local"`` they never leave it; under ``"shared"`` the floating-point ones follow the parameters
    in the vector. Integer buffers always stay local. Move the model to its device first. Raises LayoutError
    where a tensor that belongs into the vector is not float32, or the tensors are on several devices.
    """
    tensors = _tensors(model, buffers)
    if not tensors:
        raise LayoutError("the model has no trainable parameters; nothing could be learned or sent")
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise LayoutError(f"the model is spread over {sorted(map(str, devices))}; move it to one device first")
    layout = Layout(
        tuple(
            Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        )
    )
    device = devices.pop()
    trainable = sum(tensor.numel() for tensor in tensors.values() if tensor.requires_grad)
    vector = torch.empty(layout.size, dtype=torch.float32, device=device)
    gradient = torch.zeros(trainable, dtype=torch.float32, device=device)
    for entry, part in layout.slices():
        tensor, view = tensors[entry.name], vector[part].view(entry.shape)
        view.copy_(tensor.detach())
        tensor.data = view
        if tensor.requires_grad:
            tensor.grad = gradient[part].view(entry.shape)
    return FlatModel(model, layout, vector, gradient)


def _tensors(model: nn.Module, buffers: Buffers) -> dict[str, Tensor]:
    """Return what belongs into the vector: trainable parameters, then (if shared) floating-point buffers."""
    tensors: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if buffers == "shared":
        tensors |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return tensors


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")

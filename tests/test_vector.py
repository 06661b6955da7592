from __future__ import annotations

import struct

import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossipfl.errors import LayoutError
from gossipfl.vector import LAYOUT_MAGIC, Entry, Layout, flatten


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def test_parameters_keep_their_values_and_order() -> None:
    model = network()
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()
    flat = flatten(model)
    assert torch.equal(flat.vector, expected)
    assert [entry.name for entry in flat.layout.entries] == [name for name, _ in model.named_parameters()]
    assert flat.layout.size == flat.vector.numel() == flat.gradient.numel()


def test_writes_go_both_ways() -> None:
    model = network()
    flat = flatten(model)
    flat.vector.fill_(2.0)
    assert all(bool((parameter == 2).all()) for parameter in model.parameters())
    with torch.no_grad():
        model[0].bias.fill_(-1.0)
    assert torch.equal(flat.layout.views(flat.vector)["0.bias"], torch.full((3,), -1.0))
    flat.verify()


def test_views_hold_after_load_state_dict() -> None:
    source, model = network(), network()
    flat = flatten(model)
    flat.vector.zero_()
    model.load_state_dict(source.state_dict())
    assert torch.equal(flat.vector, torch.cat([parameter.detach().flatten() for parameter in source.parameters()]))
    flat.verify()


def test_backward_accumulates_into_the_flat_gradient() -> None:
    model, reference = network(), network()
    flat = flatten(model)
    inputs = torch.randn(6, 4)
    reference(inputs).square().sum().backward()
    for _ in range(2):
        flat.gradient.zero_()
        model(inputs).square().sum().backward()
    expected = [parameter.grad for parameter in reference.parameters() if parameter.grad is not None]
    assert torch.allclose(flat.gradient, torch.cat([gradient.flatten() for gradient in expected]))
    flat.verify()


def test_local_buffers_stay_out_and_shared_ones_follow_the_parameters() -> None:
    model = network()
    flat = flatten(model, buffers="shared")
    names = [entry.name for entry in flat.layout.entries]
    assert names[-2:] == ["1.running_mean", "1.running_var"]
    assert "1.num_batches_tracked" not in names
    assert flat.vector.numel() == flat.gradient.numel() + 6
    assert flat.parameters.numel() == flat.gradient.numel()
    model(torch.randn(8, 4) + 5)
    assert torch.equal(flat.layout.views(flat.vector)["1.running_mean"], model[1].running_mean)
    assert bool((model[1].running_mean != 0).all())
    flat.verify()
    assert flatten(network()).vector.numel() == flat.gradient.numel()


def test_tied_parameters_are_stored_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    flat = flatten(model)
    assert flat.layout.size == 9
    flat.vector.fill_(1.0)
    assert bool((model[1].weight == 1).all())


def test_frozen_parameters_stay_out() -> None:
    model = network()
    model[0].requires_grad_(requires_grad=False)
    flat = flatten(model)
    assert [entry.name for entry in flat.layout.entries] == ["1.weight", "1.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(LayoutError, match=r'"0\.weight" is b?float(16|64); convert it to float32'):
        flatten(network().to(dtype))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(LayoutError, match="no trainable parameters"):
        flatten(nn.Flatten())


def test_a_moved_model_is_found() -> None:
    model = network()
    flat = flatten(model)
    model[3].weight.data = model[3].weight.data.clone()
    with pytest.raises(LayoutError, match=r'"3\.weight" left the flat vector'):
        flat.verify()


def test_a_dropped_gradient_is_found() -> None:
    model = network()
    flat = flatten(model)
    model.zero_grad(set_to_none=True)
    with pytest.raises(LayoutError, match=r'gradient of "0\.weight"'):
        flat.verify()


def test_the_digest_is_blake3_of_the_documented_bytes() -> None:
    layout = Layout((Entry("käse", (2, 3)), Entry("scalar", ())))
    encoding = LAYOUT_MAGIC + struct.pack("<Q", 2)
    encoding += struct.pack("<Q", 5) + "käse".encode() + struct.pack("<Q", 7) + b"float32"
    encoding += struct.pack("<QQQ", 2, 2, 3)
    encoding += struct.pack("<Q", 6) + b"scalar" + struct.pack("<Q", 7) + b"float32" + struct.pack("<Q", 0)
    assert layout.encoding == encoding
    assert layout.digest == blake3(encoding).digest()
    assert layout.size == 7


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
entries = st.builds(Entry, names, st.lists(st.integers(0, 5), max_size=3).map(tuple))
layouts = st.lists(entries, max_size=4, unique_by=lambda entry: entry.name).map(lambda e: Layout(tuple(e)))


@given(layouts, layouts)
def test_digests_are_equal_exactly_where_layouts_are(one: Layout, other: Layout) -> None:
    assert (one.digest == other.digest) == (one == other)


@given(layouts)
def test_slices_tile_the_vector(layout: Layout) -> None:
    end = 0
    for entry, part in layout.slices():
        assert (part.start, part.stop - part.start) == (end, entry.size)
        end = part.stop
    assert end == layout.size


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(LayoutError, match="occurs twice"):
        Layout((Entry("a", (1,)), Entry("a", (2,))))
    with pytest.raises(LayoutError, match="negative"):
        Layout((Entry("a", (-1,)),))
    with pytest.raises(LayoutError, match=r"holds 2 values; the vector's shape is \(3,\)"):
        Layout((Entry("a", (2,)),)).views(torch.zeros(3))

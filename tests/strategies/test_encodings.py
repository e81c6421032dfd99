"""Codes: errors are bounded by half a step, bytes are really small, and attention on them adds no error of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from strategies.attention import grouped_attention
from strategies.token import packing
from strategies.token.contiguous import Contiguous
from strategies.token.kivi import KiviStorage
from strategies.token.per_token import PerTokenStorage

ENCODINGS: dict[str, Any] = {
    "int8": partial(PerTokenStorage, bits=8),
    "int4": partial(PerTokenStorage, bits=4),
    "kivi8": partial(KiviStorage, bits=8, n_recent=16),
    "kivi4": partial(KiviStorage, bits=4, n_recent=16),
    "kivi2": partial(KiviStorage, bits=2, n_recent=16),
}


def tokens(n: int, batch: int = 2, n_heads: int = 2, head_dim: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(batch, n_heads, n, head_dim, generator=generator, dtype=torch.double) for _ in range(2))
    return key, value


@pytest.mark.parametrize("bits", packing.WIDTHS)
@pytest.mark.parametrize("n_dims", [5, 8, 64])
def test_packing_loses_nothing_and_is_small(bits: int, n_dims: int) -> None:
    codes = torch.randint(2**bits, (3, n_dims, 7))
    packed = packing.pack(codes, bits)
    assert torch.equal(packing.unpack(packed, bits, n_dims, torch.long), codes)
    assert packed.nbytes == 3 * 7 * 4 * -(-n_dims * bits // 32)


@pytest.mark.parametrize(("bits", "has_compiler"), [(2, False), (4, False), (8, False), (4, True)])
def test_the_products_are_those_of_the_numbers(bits: int, has_compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_has_compiler", lambda device: has_compiler)
    codes = torch.randint(2**bits, (2, 64, 9000)).double()
    rows, weight = torch.randn(2, 3, 64).double(), torch.rand(2, 3, 9000).double()
    packed = packing.pack(codes, bits)
    assert not has_compiler or packing._compiles(packed)
    torch.testing.assert_close(packing.dot(rows, packed, bits), rows @ codes)
    torch.testing.assert_close(packing.mix(weight, packed, bits, 64), weight @ codes.transpose(-1, -2))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_is_off_by_half_a_step_of_its_own_scale_at_most(bits: int) -> None:
    key, value = tokens(20)
    key[0, 0, 3] = 0.0  # nothing to scale by
    storage = PerTokenStorage(Contiguous(), bits=bits)
    storage.load(key, value, 20)
    for held, given in zip(storage.tokens(20), (key, value), strict=True):
        step = given.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((held - given).abs() <= step / 2 + 1e-12).all()


@pytest.mark.parametrize("bits", packing.WIDTHS)
def test_kivi_is_off_by_half_a_step_of_a_keys_channel_and_of_a_values_group(bits: int) -> None:
    key, value = tokens(64 + 16)
    key[..., 5] = 3.0  # a channel without any range
    key[..., 7] *= 50.0  # one that stands out costs the others nothing
    storage = KiviStorage(Contiguous(), bits=bits, group_size=16, n_recent=16)
    storage.load(key, value, 80)
    held_key, held_value = storage.tokens(80)
    assert torch.equal(held_key[:, :, 64:], key[:, :, 64:])
    assert torch.equal(held_value[:, :, 64:], value[:, :, 64:])
    of_channel = key[:, :, :64].unflatten(2, (4, 16))
    step = (of_channel.amax(3) - of_channel.amin(3)) / (2**bits - 1)
    assert ((held_key - key)[:, :, :64].unflatten(2, (4, 16)).abs() <= step[:, :, :, None] / 2 + 1e-12).all()
    of_group = value[:, :, :64].unflatten(3, (2, 16))
    step = (of_group.amax(4) - of_group.amin(4)) / (2**bits - 1)
    assert ((held_value - value)[:, :, :64].unflatten(3, (2, 16)).abs() <= step[..., None] / 2 + 1e-12).all()


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_on_codes_is_attention_on_the_tokens_they_stand_for(name: str, softcap: float | None) -> None:
    key, value = tokens(90)
    storage = ENCODINGS[name](Contiguous())
    storage.load(key[:, :, :70], value[:, :, :70], 128)
    for n_held in range(70, 90):
        storage.append(n_held, key[:, :, n_held : n_held + 1], value[:, :, n_held : n_held + 1])
    query = torch.randn(2, 6, 1, 32, dtype=torch.double)
    mask = torch.rand(2, 2, 1, 90) < 0.7
    how = {"scaling": 0.3, "softcap": softcap}
    output, received = storage.attend_observed(query, 90, mask, **how)
    expected = grouped_attention(query, *storage.tokens(90), mask, **how)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9 if softcap is None else 1e-6)
    torch.testing.assert_close(received.sum(-1), torch.full((2, 2), 3.0, dtype=torch.double))  # a group of three


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("capacity", [100, 1000])
def test_whether_to_compile_does_not_change_while_a_sequence_grows(
    name: str, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be compiled in mid-run, in seconds that a step does not have."""
    monkeypatch.setattr(packing, "_has_compiler", lambda device: True)
    decisions = []
    key, value = tokens(100)
    storage = ENCODINGS[name](Contiguous())
    storage.load(key[:, :, :60], value[:, :, :60], capacity)
    parts = [storage.codes] if name.startswith("int") else [storage.keys.held[:1], storage.values.held[:1]]
    n_words = max(held.stride(0) for part in parts for held in part)
    monkeypatch.setattr(packing, "_WORTH_COMPILING", n_words if capacity == 1000 else n_words + 1)
    monkeypatch.setattr(packing, "_as_one", lambda work: decisions.append(work) or work)
    for n_held in range(60, 100):
        storage.append(n_held, key[:, :, n_held : n_held + 1], value[:, :, n_held : n_held + 1])
        before = len(decisions)
        storage.attend(torch.randn(2, 4, 1, 32, dtype=torch.double), n_held + 1, None, scaling=0.3, softcap=None)
        assert len(decisions) - before == (2 if capacity == 1000 else 0)


@pytest.mark.parametrize("name", ["kivi8", "kivi4", "kivi2"])
def test_what_is_appended_step_by_step_is_coded_as_what_is_loaded_at_once(name: str) -> None:
    key, value = tokens(150)
    at_once, step_by_step = (ENCODINGS[name](Contiguous()) for _ in range(2))
    at_once.load(key, value, 160)
    step_by_step.load(key[:, :, :40], value[:, :, :40], 160)
    for n_held in range(40, 150):
        step_by_step.append(n_held, key[:, :, n_held : n_held + 1], value[:, :, n_held : n_held + 1])
    for one, other in zip(at_once.tokens(150), step_by_step.tokens(150), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "effective_bits"), [("int8", 8.5), ("int4", 4.5), ("kivi4", 5.0), ("kivi2", 3.0)])
def test_effective_bits_count_scales_and_zero_points(name: str, effective_bits: float) -> None:
    """Per token a scale of 32 bits for 64 dimensions; KIVI two of 16 bits for 32 numbers. As single precision holds."""
    key, value = (t.float() for t in tokens(1040, head_dim=64))
    storage = ENCODINGS[name](Contiguous())
    storage.load(key, value, 1040)
    n_coded = 1024 if name.startswith("kivi") else 1040
    coded = storage.bytes_of(1040) - (1040 - n_coded) * 2 * 2 * 2 * 64 * 4
    assert 8 * coded / (n_coded * 2 * 2 * 2 * 64) == pytest.approx(effective_bits)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(PerTokenStorage, bits=2), r"encoding\.bits=2: .*valid: 4, 8"),
        (partial(KiviStorage, bits=3), r"encoding\.bits=3: .*valid: 2, 4, 8"),
        (partial(KiviStorage, group_size=0), r"encoding\.group_size=0.*valid: 1 or more"),
    ],
)
def test_widths_and_groups_that_cannot_be_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Contiguous())


def test_a_group_that_does_not_divide_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoding\.group_size=5: does not divide head_dim=32; valid: a divisor"):
        KiviStorage(Contiguous(), group_size=5).load(*tokens(3), 8)


@pytest.mark.parametrize("bits", packing.WIDTHS)
def test_codes_that_are_made_again_stay_what_they_are(bits: int) -> None:
    """Growing decodes and codes again; a zero point that was rounded up would clip a little more each time."""
    key, value = (t.float() for t in tokens(48))
    key += 300 * torch.randn(32)
    storage = KiviStorage(Contiguous(), bits=bits, group_size=16, n_recent=0)
    storage.load(key, value, 48)
    for _ in range(30):
        storage.load(*storage.tokens(48), 48)
    of_channel = key.unflatten(2, (3, 16))
    step = (of_channel.amax(3) - of_channel.amin(3)) / (2**bits - 1)
    error = (storage.tokens(48)[0] - key).unflatten(2, (3, 16)).abs()
    assert (error <= 1.1 * step[:, :, :, None] + 300 * 2**-10).all()

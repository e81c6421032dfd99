"""Hashed attention, token by token, from the paper's definition."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from strategies.model import lsh
from tests.strategies.model.sparse_models import PATTERNS, model, prompt

HASHED = 1  # the first layer that hashes


def attention():
    return model("lsh").model.layers[HASHED].self_attn


def no_rotation(n):
    return torch.ones(1, n, 8, dtype=torch.float64), torch.zeros(1, n, 8, dtype=torch.float64)


def test_a_query_attends_to_earlier_keys_of_its_buckets_and_to_itself_only_if_there_are_none(monkeypatch):
    monkeypatch.setattr(lsh, "CHUNK", 16)
    torch.manual_seed(0)
    module, n = attention(), 50
    hidden = torch.randn(2, n, 32, dtype=torch.float64)
    shared, value = (project(hidden).view(2, n, 4, 8) for project in (module.q_proj, module.v_proj))
    bucket, n_alone = module.buckets(shared.transpose(1, 2)), 0
    expected = torch.empty(2, n, 4, 8, dtype=torch.float64)
    for row in range(2):
        for head in range(4):
            for i in range(n):
                met = [j for j in range(i) if (bucket[row, head, i] == bucket[row, head, j]).any()]
                n_alone += not met
                seen = met or [i]
                score = torch.stack([shared[row, i, head] @ normalize(shared[row, j, head], dim=0) for j in seen])
                expected[row, i, head] = score.softmax(0) @ value[row, seen, head]
    found, _ = module(hidden, no_rotation(n))
    torch.testing.assert_close(found, module.o_proj(expected.flatten(2)))
    assert 2 * 4 <= n_alone < 2 * 4 * n


def test_buckets_are_the_nearest_of_rotated_directions():
    module, rounds, half = attention(), PATTERNS["lsh"]["n_hashes"], PATTERNS["lsh"]["n_buckets"] // 2
    shared = torch.randn(1, 4, 30, 8, dtype=torch.float64)
    bucket = module.buckets(shared)
    for head in range(4):
        for one in range(rounds):
            rotated = shared[0, head] @ module.rotations[head, :, one * half : (one + 1) * half]
            assert bucket[0, head, :, one].tolist() == torch.cat([rotated, -rotated], 1).argmax(1).tolist()
    assert module.buckets(3 * shared).equal(bucket)
    assert len(bucket.unique()) > half


def test_everything_is_held_with_its_buckets():
    cache = model("lsh").new_cache(10)
    model("lsh")(prompt(2, 30), past_key_values=cache, use_cache=True)
    layer = cache.layers[HASHED]
    per_token = 2 * 4 * (2 * 8 * 8 + PATTERNS["lsh"]["n_hashes"])  # rows, heads, key and value, a byte for each round
    assert layer.bytes_logical == 30 * per_token
    assert layer.keys.nbytes + layer.values.nbytes + layer.buckets.nbytes == 40 * per_token

"""A technique without the pipeline: its cache by name, for any model and for `generate()`."""

from __future__ import annotations

from typing import Any

from pipeline.refusals import CONF
from pipeline.variants import takes_budget


def build_cache(technique: str, model: Any, *overrides: str, kv_budget: int | None = None, headroom: int = 256) -> Any:
    """An empty cache for a Transformers model, as `conf/strategy/TECHNIQUE.yaml` has it.

    It is a `strategies.cache.SlotCache`, or for a technique of another package that package's own with the same
    `attached`, `bytes_held` and `bytes_logical`. `overrides` change its parts as on the command line
    (`strategy.scorer.n_sinks=8`, `strategy/scorer=random`). `kv_budget`: tokens per KV head, needed by whatever evicts.
    `headroom`: tokens that may follow a prompt before storage is allocated anew. `low_rank_kv` first wants
    `strategies.calibration.calibrate(model, ids)`, with some thousand tokens [B, T] of your own kind of text.

    Raises ValueError for an unknown technique, a budget that is missing or means nothing, a technique that holds
    nothing, and a model that was not calibrated where that is needed; ImportError for a package that is missing or does
    not fit, NotImplementedError for a device that is not there; Hydra's own errors for an override that cannot be.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    known = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
    if technique not in known:
        raise ValueError(f"technique={technique}: unknown; valid: {', '.join(known)}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"strategy={technique}", "profile=cpu", *overrides])
    evicts = takes_budget(technique, cfg.strategy.get("schedule"))
    if evicts != (kv_budget is not None):
        valid = "a number of tokens per KV head" if evicts else "none, it keeps everything or nothing"
        raise ValueError(f"kv_budget={kv_budget}: not possible for {technique}; valid: {valid}")
    cache = instantiate(cfg.strategy.cache)(model=model, kv_budget=kv_budget, headroom=headroom)
    if cache is None:
        raise ValueError(f"technique={technique}: holds nothing; valid: model.generate(..., use_cache=False) instead")
    return cache

"""What `--multirun` would run, composed and checked, without running it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Experiment
from pipeline.refusals import CONF


def experiments(overrides: Sequence[str]) -> list[Experiment]:
    """One for each job of `--multirun OVERRIDES`, in its order; raises what the command would refuse."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(str(CONF), version_base="1.3"):
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return [Experiment.from_hydra(compose("config", job)) for job in jobs]

"""Where engines are made, started and ended: one set of weights at a time, and what was started on it."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from types import TracebackType

from hydra.utils import instantiate
from transformers import GenerationConfig, PreTrainedModel

from pipeline import models
from pipeline.config import Experiment
from pipeline.engines.ours import Ours
from pipeline.engines.serving import Engine, Loaded
from pipeline.fingerprint import digest
from pipeline.levels.sides import Sides
from pipeline.record import Cell

LOSSY_WITHOUT_BUDGET = ("encoding", "sharing")  # axes on which a cache that evicts nothing may differ from a full one


class Host:
    """Use as a context manager: everything that was started ends with it."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="engines-")
        self._key = ""
        self._model: PreTrainedModel | None = None
        self._started: dict[str, Engine] = {}

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        self._scratch.cleanup()

    def loaded(self, cell: Cell, experiment: Experiment) -> Loaded:
        """Raises ValueError as `models.load`, and for a strategy that the model refuses."""
        model = self._of(cell, experiment)
        new_decoder = Sides.of(cell, experiment).technique.arm(model)
        return Loaded(
            model, self._folder, cell.dtype, experiment.n_threads, cell.seed, new_decoder, _lossless(cell, experiment)
        )

    def engine(self, cell: Cell, experiment: Experiment) -> Engine:
        """Started, or as it was left by the point before. Raises what it raises when it is made and started."""
        loaded = self.loaded(cell, experiment)
        key = digest([experiment.engine.build, cell.strategy, cell.kv_budget])
        if key not in self._started:
            build = experiment.engine.build
            engine: Engine = instantiate(build)(loaded) if build else Ours(loaded)
            engine.start()
            self._started[key] = engine
        return self._started[key]

    def end(self, engine: Engine) -> None:
        """One that failed, or that nobody asks any more."""
        engine.close()
        self._started = {key: other for key, other in self._started.items() if other is not engine}

    def _of(self, cell: Cell, experiment: Experiment) -> PreTrainedModel:
        key = digest([experiment.model.model_dump(), cell.dtype, cell.device, cell.seed, experiment.n_threads])
        if self._model is None or key != self._key:
            self._give_back()
            self._key = key
            self._model = models.load(experiment.model, cell.dtype, cell.device, cell.seed).model
            self._model.generation_config = GenerationConfig(do_sample=False)  # no token ends a request
            with models.quiet():
                self._model.save_pretrained(self._folder)
        return self._model

    @property
    def _folder(self) -> Path:
        return Path(self._scratch.name, self._key[:16])

    def _give_back(self) -> None:
        for engine in self._started.values():
            engine.close()
        self._started.clear()
        self._model = None
        gc.collect()


def _lossless(cell: Cell, experiment: Experiment) -> bool:
    own, full = experiment.strategy.model_dump(), experiment.baseline.model_dump()
    return cell.kv_budget is None and all(own[axis] == full[axis] for axis in LOSSY_WITHOUT_BUDGET)

"""W&B workspaces as code: one saved view for each level, its panels drawn from what runs log (pipeline/metrics.py).

python -m pipeline.dashboard    publishes the views where somebody is logged in, else writes them to dashboard.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import metrics, tracking

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

FILE = "dashboard.json"
MAX_RUNS = 50  # in one panel: every technique of a grid
PROTOCOLS = ("query_agnostic", "query_aware")
INTERVAL, BESIDE_FULL, BATCHES = "(_low|_high)?", "(_full)?", r"(_b\d+)?"
BESIDE_BASELINES = "(_batch|_one_by_one)?"


@dataclass(frozen=True)
class Panel:
    """Every logged name that `pattern` matches as a whole, against the axis of its section."""

    title: str
    pattern: str

    @property
    def axis(self) -> str:
        axes = metrics.CELL_AXES | metrics.TRAINING_AXES
        return next(axis for section, axis in axes.items() if self.pattern.startswith(section))

    def shows(self, name: str) -> bool:
        return re.fullmatch(self.pattern, name) is not None


@dataclass(frozen=True)
class View:
    """The runs of one kind (`job_type`), and their panels by section."""

    name: str
    job_type: str
    sections: dict[str, tuple[Panel, ...]]

    @property
    def panels(self) -> list[Panel]:
        return [panel for panels in self.sections.values() for panel in panels]


def _cell(title: str, section: str, names: str) -> Panel:
    """Sections of a cell carry the batch where a grid has several."""
    return Panel(title, f"{section}{BATCHES}/{names}")


TIME = (
    _cell("Decode step, as a ratio to the reference", "cost", f"tpot_ratio{INTERVAL}"),
    _cell("First token, as a ratio to the reference", "cost", f"ttft_ratio{INTERVAL}"),
    _cell("Decode step, seconds, beside the reference", "cost", f"tpot_s{BESIDE_FULL}"),
    _cell("First token, seconds, beside the reference", "cost", f"ttft_s{BESIDE_FULL}"),
    _cell("Tokens per second, beside the reference", "cost", f"decode_tokens_per_s{BESIDE_FULL}"),
    _cell("Share of the measured bandwidth", "cost", "decode_bandwidth_share"),
)
MEMORY = (
    _cell("KV bytes held, beside the reference", "memory", f"kv_bytes_held{BESIDE_FULL}"),
    _cell("Peak memory, bytes, beside the reference", "memory", f"peak_memory_bytes{BESIDE_FULL}"),
)
WEIGHTS = (_cell("Weights, bytes, beside the reference", "memory", f"weight_bytes{BESIDE_FULL}"),)
QUALITY = (
    *(_cell(f"Recall, {protocol.replace('_', '-')}", f"quality_{protocol}", r"\w+") for protocol in PROTOCOLS),
    _cell("Loss on text, difference in nats", "quality_text", f"nll_difference{INTERVAL}"),
    _cell("Loss on text, nats, beside the reference", "quality_text", f"nll{BESIDE_FULL}"),
)
STEPS = (
    Panel("Latency of each decode step, seconds", r"step_t\d+_b\d+/latency_s(_full)?"),
    Panel("KV bytes held after each decode step", r"step_t\d+_b\d+/kv_bytes_held(_full)?"),
    Panel("Peak memory in each decode step, bytes", r"step_t\d+_b\d+/peak_memory_bytes(_full)?"),
)
ENGINES = (
    _cell("Tokens per second, beside both baselines", "throughput", f"tokens_per_s{BESIDE_BASELINES}"),
    _cell("Over Transformers in one batch", "throughput", f"speedup_batch{INTERVAL}"),
    _cell("Over Transformers one by one", "throughput", f"speedup_one_by_one{INTERVAL}"),
    _cell("First token, seconds", "throughput", f"ttft_s{BESIDE_BASELINES}"),
    _cell("Decode step, seconds", "throughput", f"tpot_s{BESIDE_BASELINES}"),
    _cell("KV bytes, allocated and used", "throughput", "kv_bytes_(allocated|used)"),
)
TRAINING = (
    Panel("Losses, nats", r"loss/\w+"),
    Panel("Recall while training", r"recall/\w+"),
    Panel("Learning rate and length", r"schedule/\w+"),
)
VIEWS = (
    View("Token level", "token", {"Time": TIME, "Memory": MEMORY, "Quality": QUALITY, "By decode step": STEPS}),
    View("Model level", "model", {"Quality": QUALITY, "Memory": MEMORY, "Time": TIME, "By decode step": STEPS}),
    View("System level: weights", "system", {"Memory": (*WEIGHTS, *MEMORY), "Time": TIME, "Quality": QUALITY}),
    View("System level: engines", "engine", {"Throughput": ENGINES}),
    View("Training", "train", {"Curves": TRAINING}),
)


def workspace(view: View, entity: str, project: str) -> Workspace:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    sections = []
    for title, panels in view.sections.items():
        plots = [wr.LinePlot(title=one.title, x=one.axis, metric_regex=f"^{one.pattern}$") for one in panels]
        for number, plot in enumerate(plots):
            plot._id = f"{view.job_type}-{title}-{number}".lower().replace(" ", "-")  # else another at each call
        sections.append(ws.Section(name=title, panels=[*plots], is_open=True))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{project}: {view.name}",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(filters=expr.And(expr.Metric("JobType") == view.job_type)),
    )


def spec(view: View, entity: str, project: str) -> dict[str, Any]:
    """What is sent to W&B; the package has no public way to show it, which is why its version is pinned."""
    found = workspace(view, entity, project)._to_model()
    told: dict[str, Any] = json.loads(found.model_dump_json(by_alias=True, exclude_none=True))
    return told


def publish(entity: str, project: str) -> list[str]:
    """The address of each view. One that was published before is replaced. Raises what W&B answers as an error."""
    from wandb_workspaces.workspaces import internal

    urls = []
    for view in VIEWS:
        found = workspace(view, entity, project)
        short = f"{project}-{view.job_type}"
        found._internal_name = internal._url_query_str_to_internal_name(short)
        try:
            found._internal_id = internal.get_view_dict(entity, project, short)["id"]
        except ValueError:  # is not there yet
            found._internal_id = ""
        urls.append(found.save().url)
    return urls


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.dashboard", description="Publish the W&B workspaces.")
    parser.add_argument("project", nargs="?", default="kv-cache-lab", help="the project of W&B that runs are in")
    project = parser.parse_args(arguments).project
    try:
        tracking.require("wandb_workspaces", "dashboard")
        with tracking.answered():
            entity, why_not = tracking.account()
            told = _kept(entity, project, why_not) if why_not else "\n".join(publish(entity, project))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(told)
    return 0


def _kept(entity: str, project: str, why_not: str) -> str:
    path = tracking.folder() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([spec(view, entity, project) for view in VIEWS], indent=1) + "\n")
    return f"not published: {why_not}; the workspaces are in {path}"


if __name__ == "__main__":
    sys.exit(main())

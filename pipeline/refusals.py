"""Bad input as one line and exit code 2: Hydra's, OmegaConf's, pydantic's and our own errors, without traceback."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline import ROOT

CONF = ROOT / "conf"
COMPOSING = (HydraException, OmegaConfBaseException)


@contextmanager
def refusals(
    errors: tuple[type[Exception], ...] = (*COMPOSING, ValueError), config_name: str = "config"
) -> Iterator[None]:
    """What is raised inside, before any work, ends the process with one line on stderr and exit code 2.

    `config_name`: the file of conf/ whose options are valid.
    """
    try:
        yield
    except errors as error:
        print(one_line(error, config_name), file=sys.stderr)
        raise SystemExit(2) from None


def one_line(error: Exception, config_name: str = "config") -> str:
    """`field=value: why; valid: …` as far as the error knows them."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: not found; valid: {', '.join(error.options)}{_closest(name, list(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as name=value; quote values that hold spaces, commas or brackets"
    if match := re.match(r"Ambiguous value for argument '([\w./@]+)=(.*?)'", str(error)):
        name, values = match.groups()
        return (
            f"{name}={values}: several values; valid: {name}=[{values}] for a list, or --multirun for one after another"
        )
    if match := re.search(r"Could not (?:override|append to config.*) '?([\w./@]+)'?", str(error)):
        known = option_names(config_name)
        return f"{match[1]}: no such option; see --help{_closest(match[1], known)}"
    return " ".join(str(error).split())


def option_names(config_name: str = "config") -> list[str]:
    """Every dotted name and every group of a configuration, the default one unless told."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name, return_hydra_config=True)
    groups = [str(name) for name in cfg.hydra.runtime.choices if not str(name).startswith("hydra/")]
    return groups + _dotted(cfg)


def _dotted(cfg: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for key in map(str, cfg):
        name = f"{prefix}{key}"
        node = cfg._get_node(key)
        names.append(name)
        if isinstance(node, DictConfig) and name != "hydra" and not node._is_none() and not node._is_interpolation():
            names += _dotted(node, f"{name}.")
    return names


def _closest(name: str, known: list[str]) -> str:
    """The known name most like this one, or the one that ends like it."""
    close = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.endswith(f".{name}")][:1]
    return f"; did you mean {close[0]}?" if close else ""

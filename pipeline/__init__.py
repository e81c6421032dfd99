"""The experiments: one cell in, one record out. Techniques are reached only through `conf/`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

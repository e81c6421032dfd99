"""`python -m pipeline.report [results_dir] [reports_dir]`: render the report from the records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report", description="Render the report from the records."
    )
    parser.add_argument("results_dir", nargs="?", type=Path, default=Path("results"), help="where the records are")
    parser.add_argument("reports_dir", nargs="?", type=Path, default=Path("reports"), help="where the report goes")
    options = parser.parse_args(arguments)
    from pipeline.report import render

    try:
        files = render.render(options.results_dir, options.reports_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    render.write(files, options.reports_dir)
    print(options.reports_dir / render.REPORT)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Records in, `report.md` and its figures out: every number and every verdict is computed from records."""

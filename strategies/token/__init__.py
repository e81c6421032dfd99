"""Token-level parts, one file each: scorers, allocations, schedules, encodings, sharings, placements."""

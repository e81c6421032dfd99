"""Which technique to use: candidates from records, and one selection that the report and the command line share."""

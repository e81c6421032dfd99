"""What records say: read, checked, averaged and judged; no word of it depends on who shows it."""

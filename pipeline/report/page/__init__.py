"""The report as one page that needs no network: its tables sorted and filtered, its figures interactive."""

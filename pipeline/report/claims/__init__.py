"""Published claims, each put to the test on the records that come nearest to it."""

"""Public corpora and planted sets, for the demo, the self-test, the tests. Fetches packages by name into the cache."""

"""The commands of `dfn` that do not fit into `etl/__main__.py`. Arguments in, lines out; the work is elsewhere."""

"""The commands of `dfn`. Arguments in, lines out; the work is elsewhere."""

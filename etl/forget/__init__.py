"""Taking pairs down for good: find what is named, remove it everywhere, keep it out, and record it in hashes only."""

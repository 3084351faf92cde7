"""What others hand over: lists, tables and folders of pairs, as ingest and collect read them; and what stays out."""

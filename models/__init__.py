"""Towers, filters and the models that they induce. Knows no Spark; torch is imported only by what trains or encodes.

read first        records (what pins a version), filters (vectors -> scores), data (stored vectors -> batches)
on executors      encoder (pixels and captions -> vectors) over clip (folders of weights) and images (bytes -> pixels)
where one trains  train, average (before and after), pretrained and foreign (others' weights)
how good it is    evaluate over metrics and prompts; with pixels: embedder, eval_sets, tasks (DataComp's 38)
MLflow            tracking (patience), spool (runs), registry (models, aliases), gate, pyfunc_filter, pyfunc_clip
"""

import os

# Every model is a local file: nothing is looked up on a hub, not even when a path is mistyped.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

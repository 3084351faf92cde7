"""Towers, filters and the models that they induce. Knows no Spark; torch is imported only by what trains or encodes.

read first        records (what pins a version), filters (vectors -> scores), data (stored vectors -> batches)
on executors      encoder (pixels and captions -> vectors) over clip (folders of weights) and images (bytes -> pixels)
where one trains  train, evaluate, registry
"""

import os

# Every model is a local file: nothing is looked up on a hub, not even when a path is mistyped.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

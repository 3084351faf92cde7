"""dfn-etl: from a web pool of image-text pairs to a training set, by learning what to keep.

    ingest      files                      -> inputs, pairs      one row per pair, pointing into a tar shard
    signals     pairs                      -> signals            language, length, shape
    dedup       pairs                      -> duplicates         groups of same URL, bytes, near hashes, near captions
    decontaminate  pairs, evaluation pairs -> contaminated       same bytes or look as in an evaluation set
    embed       pairs                      -> embeddings         GPU: vectors, once per encoder version
    image_signals  pairs                   -> image_signals      what a vision model says, in the pass of embed
    face_boxes  metadata files             -> image_signals      where a release came with face boxes
    features    npz files                  -> embeddings         in place of embed: vectors that a release came with
    dedup_semantic  embeddings             -> duplicates         groups that mean nearly the same, where switched on
    decontaminate_semantic  embeddings, evaluation embeddings -> contaminated   copies that a hash misses
    score       embeddings                 -> scores             one row per pair and filter version
    published_scores  metadata files       -> scores             in place of score: a column of a release
    fusion      scores of other filters    -> scores             by rank or by range
    selection   all of the above           -> selections, receipts   a rule, and the proof of what it kept
    listed      a list of uids, pairs      -> selections, receipts   in place of selection: what somebody published

`stages/__init__.py` is the recipe. `loop.py` goes on from there: train, evaluate; `gating.py` judges, `promotion.py`
says who is champion, `backfill.py` whose scores cover the pool, and `lineage.py` where a model came from.
"""

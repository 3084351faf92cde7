"""dfn-etl: from a web pool of image-text pairs to a training set, by learning what to keep.

    ingest      files                      -> inputs, pairs      one row per pair, pointing into a tar shard
    signals     pairs                      -> signals            language, length, shape
    dedup       pairs                      -> duplicates         groups of same URL, bytes, near hashes, near captions
    decontaminate  pairs, evaluation pairs -> contaminated       same bytes or look as in an evaluation set
    embed       pairs                      -> embeddings         GPU: vectors, once per encoder version
    image_signals  pairs                   -> image_signals      what a vision model says, in the pass of embed
    variants    evaluation pairs           -> variants           edited copies of them, in the pass of embed
    face_boxes  metadata files             -> image_signals      where a release came with face boxes
    features    npz files                  -> embeddings         in place of embed: vectors that a release came with
    dedup_semantic  embeddings             -> duplicates         groups that mean nearly the same, where switched on
    decontaminate_semantic  embeddings, pairs, and evaluation's, variants -> contaminated   copies, edited ones too
    score       embeddings                 -> scores             one row per pair and filter version
    published_scores  metadata files       -> scores             in place of score: a column of a release
    fusion      scores of other filters    -> scores             by rank or by range
    selection   all of the above           -> selections, receipts   a rule, and the proof of what it kept
    listed      a list of uids, pairs      -> selections, receipts   in place of selection: what somebody published

`stages/__init__.py` is the recipe, and each stage is a file there. The files of this folder are the house that they
live in: the protocol (stage.py), contracts (tables.py), configuration, the runner, Delta (store.py), shards. What
stages are made of is beside them, a folder each: web, intake, dedup, encode, filters, select. From there on: `loop`
trains, evaluates, judges and promotes; `export` hands over; `evidence` asks whether filtering works; `samples` has data
to try it on; `report` has the pages for people; `commands` are the rest of `dfn`.
"""

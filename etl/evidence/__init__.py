"""The evidence suite: whether the paper's findings hold at this size, on frozen towers and trained heads.

    base.py        the pool and all other datasets, encoded once by the stages; Spark runs here only
    pools.py       planted noise: the base pool's pairs under a seed, and the truth in a file beside
    jobs.py        what is trained: filters, and models induced by what they select; a job is data, its digest a name
    bench.py       does a job in a process without Spark, once: stored vectors, the functions of the stages
    scoring.py     what ranks the pool's pairs; selecting.py: the stages' cut and draw
    experiments.py the cells of each experiment, listed beforehand
    claims.py      what the cells say, with intervals, corrected for the number of comparisons
    suite.py       all of it, resumable; report.py: the page

An *analogue* of the paper's experiments (arXiv 2309.17425), which trains whole CLIPs on pools of 10^8 pairs.
"""

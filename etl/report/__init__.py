"""Pages for people: self-contained HTML, plain data in. No script, no network.

    card        of one selection: what it kept of its pool, and what is known of it
    compared    of two selections: who entered, who left, why
    round       of a round of the loop: the arms side by side
    calibration of the thresholds for leaks: what they find and flag, and pictures to judge by

Each has its data and renderer in NAME.py and its template in NAME.html.j2; they share page.py (text made harmless, the
frame), plots.py and pictures.py, and none of these knows Spark. `card_facts`, `measures`, `showing`, `compare_facts`
and `calibration_facts` query Spark for them: aggregates, and samples of a bounded size.
"""

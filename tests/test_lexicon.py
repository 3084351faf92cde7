"""Captions that are unsafe for work by their words: the list, its format, the score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.config import load
from etl.samples import corpora
from etl.selection.lexicon import MAX_WORDS, Lexicon, read_lexicon
from etl.shards import scan
from etl.stage import UserError

DEFAULT = read_lexicon(None)


@pytest.mark.parametrize(("text", "is_unsafe"), [
    ("hot porn video", True), ("XXX Hentai gallery", True), ("sex toys for sale", True), ("Naked girls, topless", True),
    ("a sexy dress in nude pink", False), ("the adult breast of a robin", False), ("Essex county map", False),
    ("escort ship of the navy", False), ("hardcore punk concert", False),
    ("sextant, brass", False), ("", None), (None, None),
])  # fmt: skip
def test_the_default_list_tells_plain_cases_apart(text, is_unsafe):
    score = DEFAULT.score(text)
    assert (score is None, (score or 0) > 0.6) == (is_unsafe is None, bool(is_unsafe))


def test_hardly_a_real_caption_of_clip_art_is_flagged():
    """100 real pairs of an evaluation set for schools."""
    folder = corpora.build("things", load(["tiny"]).datasets["things"].corpus, say=lambda _: None)
    texts = [row["text"] for tar in folder.glob("*.tar") for row in scan(str(tar)) if isinstance(row, dict)]
    assert len(texts) == 100
    assert [text for text in texts if (DEFAULT.score(text) or 0) > 0.3] == []


@pytest.mark.parametrize("line", ["porn", "porn 0.5", "porn\t0", "porn\t0.0", "porn\t1.5", "porn\t-1", "porn\tnan",
                                  "a b c d\t0.5", "--\t0.5"])  # fmt: skip
def test_a_line_that_is_none_is_told_with_its_number(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"# words\n\nfine\t0.5\n{line}\n")
    with pytest.raises(UserError, match=r"list\.txt line 4: wanted 1 to 3 words, a tab, and a weight"):
        read_lexicon(tmp_path / "list.txt")


def test_a_list_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"signals\.lexicon: wanted a text file; found .*none\.txt: FileNotFoundError"):
        read_lexicon(tmp_path / "none.txt")


@given(st.text(max_size=200), st.dictionaries(st.text("ab ", min_size=1, max_size=5), st.floats(0.01, 1.0)))
def test_a_score_is_between_the_largest_weight_found_and_one(text, weights):
    score = Lexicon(weights, "x").score(text)
    assert (score is None) == (not text.strip())
    assert score is None or 0 <= score <= 1
    if score == 0:
        assert not set(text.casefold().split()) & weights.keys()
    assert MAX_WORDS == 3

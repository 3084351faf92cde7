"""Kernels of dedup against plain Python: shingles, Jaccard, MinHash, and hashes that differ in few bits."""

import random
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import hamming, minhash
from models.minhash import Banding, band_keys, banding, jaccard, signatures


@cache
def shingles(text: str | None) -> set[bytes]:
    """By the definition: ASCII blanks and letters folded, then every five bytes."""
    data = b" ".join((text or "").encode().translate(bytes(b + 32 if 65 <= b <= 90 else b for b in range(256))).split())
    return {data[n : n + 5] for n in range(len(data) - 4)} if len(data) >= 5 else {data} - {b""}


def share(one: str | None, other: str | None) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


TEXTS = st.one_of(st.none(), st.text(alphabet="aAbB \n\té", max_size=12), st.text(max_size=40))


BEGUN_ALIKE = st.tuples(st.text("abc \té", min_size=4, max_size=12), st.text(max_size=6), st.text(max_size=6)).map(
    lambda parts: (parts[0] + parts[1], parts[0].upper() + parts[2])
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.tuples(TEXTS, TEXTS), BEGUN_ALIKE), min_size=1, max_size=8))
def test_jaccard_is_that_of_the_sets(pairs):
    ours, theirs = (pa.array(column, pa.string()) for column in zip(*pairs, strict=True))
    assert jaccard(ours, theirs).tolist() == [share(a, b) for a, b in pairs]
    assert jaccard(ours[1:], theirs[1:]).tolist() == [share(a, b) for a, b in pairs[1:]]  # a slice of a larger array


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=8))
def test_equal_sets_have_equal_keys_and_an_empty_one_has_none(texts):
    keys_NB, sketches_NW, is_some_N = band_keys(pa.array(texts, pa.string()), Banding(18, 7))
    assert (keys_NB.shape, sketches_NW.shape) == ((len(texts), 18), (len(texts), 2))
    assert is_some_N.tolist() == [bool(shingles(text)) for text in texts]
    for n, text in enumerate(texts):
        for m in range(n):
            if shingles(text) == shingles(texts[m]):
                assert (keys_NB[n] == keys_NB[m]).all() and (sketches_NW[n] == sketches_NW[m]).all()


def test_the_least_hash_is_that_of_plain_python():
    """Of 1 to 9 shingles: the kernel takes them by fours."""
    mask = 2**64 - 1

    def mixed(x: int) -> int:
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ x >> 33) * factor & mask
        return x ^ x >> 33

    draw = np.random.default_rng(minhash.SEED)
    factors = draw.integers(0, 1 << 31, 128, np.uint32).astype(object) * 2 + 1
    terms = draw.integers(0, 1 << 32, 128, np.uint32).astype(object)
    texts = ["abcdefghijklm"[: 5 + n] for n in range(9)]
    sketches_NW = band_keys(pa.array(texts), Banding(18, 7))[1]
    for text, keys_H, sketch_W in zip(texts, signatures(pa.array(texts)), sketches_NW.tolist(), strict=True):
        hashes = [mixed(int.from_bytes(shingle, "big")) % 2**32 for shingle in shingles(text)]
        least = [min((f * x + t) % 2**32 for x in hashes) for f, t in zip(factors, terms, strict=True)]
        key = [value * 0x9E3779B97F4A7C15 & mask for value in least]
        assert [k ^ k >> 32 for k in key] == keys_H.tolist()
        bits = "".join(str((value * 0x9E3779B1 % 2**32) >> 31) for value in least)
        assert [int(bits[:64], 2), int(bits[64:], 2)] == sketch_W


def captions(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(800)]
    return [" ".join(draw.choices(words, k=draw.randint(4, 14))) for _ in range(number)]


def edited(text: str, draw: random.Random) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = draw.choice(["red", "very large", ""])
    return " ".join(words)


def test_agreement_estimates_jaccard_as_well_as_minhash_can():
    """With the variance of independent hash functions, J (1 - J) / 128, and a bias (of affine ones) far below it."""
    draw = random.Random(3)
    texts = captions(2000, seed=2)
    others = [edited(edited(text, draw), draw) for text in texts]
    true = np.array([share(a, b) for a, b in zip(texts, others, strict=True)])
    found = (signatures(pa.array(texts)) == signatures(pa.array(others))).mean(axis=1)
    assert abs((found - true).mean()) < 0.006
    assert ((found - true) ** 2).sum() == pytest.approx((true * (1 - true) / 128).sum(), rel=0.2)


def test_bits_of_sketches_agree_as_often_as_half_of_captions_and_their_jaccard_say():
    draw, texts = random.Random(4), captions(3000, seed=6)
    others = [edited(text, draw) if n % 2 else texts[n - 1] for n, text in enumerate(texts)]
    true = np.array([share(a, b) for a, b in zip(texts, others, strict=True)])
    ours, theirs = (band_keys(pa.array(some), banding(0.8))[1] for some in (texts, others))
    agreeing = minhash.NUM_HASHES - np.bitwise_count(ours ^ theirs).sum(axis=1, dtype=int)
    assert abs((agreeing / minhash.NUM_HASHES - (1 + true) / 2).mean()) < 0.006
    near, far = agreeing[true >= 0.8], agreeing[true < 0.4]
    assert min(len(near), len(far)) > 400
    assert (near >= minhash.min_bits(0.8)).mean() >= minhash.SKETCH_RECALL
    assert (far >= minhash.min_bits(0.8)).mean() < 0.02


@pytest.mark.parametrize("limit", [0.5, 0.8, 0.95])
def test_bands_find_nearly_all_pairs_at_the_threshold(limit):
    bands = banding(limit)
    assert bands.num_bands * bands.num_rows <= minhash.BAND_HASHES
    assert bands.recall(limit) >= minhash.RECALL > Banding(bands.num_bands - 1, bands.num_rows).recall(limit)
    longer = Banding(minhash.BAND_HASHES // (bands.num_rows + 1), bands.num_rows + 1)
    assert longer.recall(limit) < minhash.RECALL
    draw = random.Random(5)
    times = 4 if limit > 0.9 else 1  # a word of a long caption is a small part of it
    texts = [" ".join(parts) for parts in zip(*(captions(4000, seed=n) for n in range(times)), strict=True)]
    others = [edited(text, draw) for text in texts]
    near = [n for n in range(len(texts)) if limit <= share(texts[n], others[n]) < 1]
    assert len(near) > 500
    keys, of_others = (band_keys(pa.array(some), bands)[0][near] for some in (texts, others))
    expected = np.mean([bands.recall(share(texts[n], others[n])) for n in near])
    assert (keys == of_others).any(axis=1).mean() == pytest.approx(expected, abs=0.02)


def test_a_caption_of_a_megabyte_is_looked_at_in_part():
    long = "x" + "lorem ipsum " * 100_000
    assert jaccard(pa.array([long]), pa.array([long + "and another end"])).tolist() == [1.0]


# --- hamming


def near_groups(hashes: list[int], max_bits: int) -> list[int]:
    """The smallest place in the group of each hash, by all pairs."""
    parents = list(range(len(hashes)))

    def root(n: int) -> int:
        while parents[n] != n:
            n = parents[n]
        return n

    for i, one in enumerate(hashes):
        for j in range(i):
            if (one ^ hashes[j]).bit_count() <= max_bits:
                low, high = sorted((root(i), root(j)))
                parents[high] = low
    return [root(n) for n in range(len(hashes))]


def flipped(draw: random.Random, one: int, most: int) -> int:
    for bit in draw.sample(range(64), draw.randint(0, most)):
        one ^= 1 << bit
    return one


def clustered(seed: int, max_bits: int) -> list[int]:
    """Hashes at and about the limit from others, and a crowd that agrees on nearly all bits."""
    draw = random.Random(seed)
    crowd = draw.getrandbits(64)
    found = {crowd ^ number for number in range(draw.choice([3, 40]))}
    for _ in range(60):
        one = draw.getrandbits(64)
        found |= {one, *(flipped(draw, one, max_bits + 2) for _ in range(draw.randint(0, 3)))}
    return draw.sample(sorted(found), len(found))


@pytest.mark.parametrize("small", [1, 6, 512])
@pytest.mark.parametrize("max_bits", [0, 1, 4, 9])
def test_no_pair_within_the_limit_is_lost_and_none_beyond_it_joined(monkeypatch, small, max_bits):
    """However often large buckets are split."""
    monkeypatch.setattr(hamming, "SMALL", small)
    for seed in range(6):
        hashes = clustered(seed, max_bits)
        array = np.array(hashes, np.uint64)
        place = {value: n for n, value in enumerate(hashes)}
        firsts, seconds = hamming.forest(array, max_bits)
        found = list(range(len(hashes)))
        for a, b in zip(firsts.tolist(), seconds.tolist(), strict=True):
            found[place[a]] = place[b]
        assert found == near_groups(hashes, max_bits)


@pytest.mark.parametrize("small", [1, 6, 512])
@pytest.mark.parametrize("max_bits", [0, 4])
def test_of_old_and_new_hashes_only_pairs_with_a_new_one_are_joined_and_compared(monkeypatch, small, max_bits):
    monkeypatch.setattr(hamming, "SMALL", small)
    compare, compared = hamming._compare, []

    def counted(hashes_N, parents_N, order, starts, is_large, most, num_new):
        for start, end, is_left in zip(starts, starts[1:], is_large, strict=False):
            new = int((order[start:end] < num_new).sum())
            compared.append(0 if is_left else new * (end - start))
        compare(hashes_N, parents_N, order, starts, is_large, most, num_new)

    monkeypatch.setattr(hamming, "_compare", counted)
    masks = hamming.bands(max_bits)
    for seed in range(6):
        hashes = clustered(seed, max_bits)
        for num_new in (0, 3, len(hashes) // 2):
            compared.clear()
            found = set()
            for mask in masks:
                ends = hamming.forest(np.array(hashes, np.uint64), max_bits, mask, num_new)
                found |= set(zip(*(end.tolist() for end in ends), strict=True))
            pairs = [(a, b) for n, a in enumerate(hashes[:num_new]) for b in hashes[n + 1 :]
                     if (a ^ b).bit_count() <= max_bits]  # fmt: skip
            assert union_of(found, hashes) == union_of(pairs, hashes)
            if small == 512:  # no bucket is split: each new hash meets those of its bucket, and no other two meet
                met = sum(a & mask == b & mask for mask in masks for a in hashes[:num_new] for b in hashes)
                assert sum(compared) == met


def union_of(links, hashes) -> list[int]:
    """The group of each hash by links."""
    place = {value: n for n, value in enumerate(hashes)}
    groups = list(range(len(hashes)))
    for a, b in links:
        one, other = groups[place[a]], groups[place[b]]
        groups = [min(one, other) if g in (one, other) else g for g in groups]
    return groups


@given(st.integers(0, 12), st.integers(0, 2**64 - 1))
def test_bands_are_disjoint_and_cover_what_is_free(max_bits, fixed):
    masks = hamming.bands(max_bits, fixed)
    free = ~fixed & (2**64 - 1)
    if free.bit_count() <= max_bits:
        assert masks == []
    else:
        assert len(masks) == max_bits + 1
        assert sum(masks) == free
        assert sum(mask.bit_count() for mask in masks) == free.bit_count()
        assert max(mask.bit_count() for mask in masks) - min(mask.bit_count() for mask in masks) <= 1


def test_pairs_that_disagree_on_the_fixed_bits_are_not_wanted():
    hashes = np.array([0b1_0000, 0b1_0001, 0b0_0000], np.uint64)
    firsts, seconds = hamming.forest(hashes, 2, fixed=0b1_0000)
    assert (firsts.tolist(), seconds.tolist()) == ([0b1_0001], [0b1_0000])

"""The closed set of statuses, and the checks that every table has in common. Touches nothing."""

from __future__ import annotations

STATUSES = {
    "ok": "went through",
    "metadata_only": "known by its metadata; its pixels have not come",
    "duplicate_uid": "another row with this uid came first (earlier chunk, then smaller shard, then smaller offset)",
    "missing_partner": "a caption or json without an image",
    "missing_text": "an image without a caption",
    "invalid_text": "the caption is not UTF-8",
    "empty_file": "the image has zero bytes",
    "not_an_image": "the bytes are not an image, whatever the name says",
    "unsupported_format": "an image of a format outside the allow-list",
    "too_many_pixels": "the header declares more pixels than the cap",
    "decode_error": "cut or damaged",
    "decoder_crash": "the decoder crashed on it",
    "too_large": "the member is larger than the cap",
    "unsafe_member": "a tar member or a listed path that is a link, a device, or points outside",
    "read_error": "the shard could not be read at this offset",
    "cut": "the file ends too early; what is whole was taken",
    "not_a_tar": "the file is not an uncompressed tar",
    "bad_parquet": "the parquet file does not parse or lacks the columns",
    "bad_list": "the list (CSV, TSV, JSON lines) does not parse or lacks the columns",
    "unreadable": "the file could not be opened",
    "invalid_output": "the model gave NaN, infinity or a zero vector",
    "no_vectors": "no usable vectors to score",
    "unsupported_url": "not an absolute http or https URL, or one with credentials, or too long",
    "over_cap": "beyond the images that are taken of one page",
    "not_html": "an answer that is no page, or no page with status 200",
    "bad_record": "a record that does not parse",
    "not_a_crawl_file": "the file holds no WARC record",
    "blocked_address": "the host is at no address that may be connected to",
    "blocklisted": "on a blocklist, by URL, domain, sha256 or perceptual hash",
    "forgotten": "taken down by `dfn forget`: counted in a ledger, and in no table",
    "opted_out": "robots.txt, a header or a page says no; the evidence is beside it",
    "dns_error": "the host has no address",
    "connect_error": "no connection, or one that broke",
    "tls_error": "no certificate that can be trusted, or no TLS",
    "timeout": "not done at the deadline",
    "too_many_redirects": "more redirects than the cap, or in a circle",
    "http_error": "an answer that is none: status 400 and above, or one that does not parse",
    "hash_mismatch": "the bytes are not those that the index says",
    "bad_npz": "the npz beside a metadata file does not parse, or does not fit it row by row",
}
"""The closed set: the status of any row in any table, and what it means."""

WAITS = "metadata_only"
"""Of a pair that gives way to its sample when that comes."""


def one_of(names: dict[str, str]) -> str:
    """A SQL condition: the status is one of these."""
    return "status IN (" + ", ".join(f"'{name}'" for name in names) + ")"


UID_CHECK = {"uid_is_32_hex": "uid RLIKE '^[0-9a-f]{32}$' AND length(uid) = 32"}
STATUS_CHECK = {"status_is_known": one_of(STATUSES)}

"""The statuses of rows, in every table. Touches nothing."""

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
    "unsafe_member": "a tar member that is a link, a device, or points outside",
    "read_error": "the shard could not be read at this offset",
    "cut": "the file ends too early; what is whole was taken",
    "not_a_tar": "the file is not an uncompressed tar",
    "bad_parquet": "the parquet file does not parse or lacks the columns",
    "unreadable": "the file could not be opened",
    "invalid_output": "the model gave NaN, infinity or a zero vector",
    "no_vectors": "no usable vectors to score",
    "bad_npz": "the npz beside a metadata file does not parse, or does not fit it row by row",
}
"""The closed set: the status of any row in any table, and what it means."""

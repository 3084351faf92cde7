"""What two addresses, and two captions, have in common when they are the same for people. SQL columns; touches nothing.

Our own, in SQL, since the libraries for it are Python, row by row: https and http are one; user and password, default
ports, fragments, parameters that only track visitors, and slashes at the end of the path are left out; the host is in
lower case. Paths and other parameters stay as they are, in their order: servers may mind. Addresses of other schemes
stay whole.
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

WEB = r"^(?i:https?)://(?:[^/?#@]*@)?([^/?#@]+?)(?::(?:80|443)?)?(/[^?#]*)?(?:\?([^#]*))?(?:#.*)?$"
TRACKING = r"^(?:(?:utm_\w+|fbclid|gclid|dclid|msclkid|yclid|mc_cid|mc_eid|igshid|_ga)(?:=.*)?)?$"


def canonical_url(url: str) -> Column:
    """NULL of NULL and of blanks."""
    trimmed = F.trim(F.col(url))
    host, path, query = (F.regexp_extract(trimmed, WEB, number) for number in (1, 2, 3))
    kept = F.filter(F.split(query, "&"), lambda parameter: ~parameter.rlike(TRACKING))
    asked = F.when(F.size(kept) > 0, F.concat(F.lit("?"), F.array_join(kept, "&"))).otherwise("")
    web = F.concat(F.lower(host), F.regexp_replace(path, "/+$", ""), asked)
    return F.when(host != "", web).when(trimmed != "", trimmed)


def normal_text(text: str) -> Column:
    """Lower case, runs of blanks as one space, none at the ends. NULL of NULL."""
    return F.trim(F.lower(F.regexp_replace(F.col(text), r"\s+", " ")))


def url_text(url: str, text: str) -> Column:
    """32 hex digits of both; NULL where either is."""
    return F.md5(F.concat(canonical_url(url), F.lit("\0"), normal_text(text)))

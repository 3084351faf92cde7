"""Whether what is there is what it is said to be: tables, shards, vectors, and the ledger over all of them."""

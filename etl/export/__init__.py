"""A selection for whoever trains: shards, uid lists, or pointers into the pool's own shards."""

"""A run in the formats that other tools read: committed rows, and the source shards where photos are wanted, go in."""

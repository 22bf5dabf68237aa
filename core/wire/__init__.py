"""How statements reach the server: sessions, the pool of connections, group commit, and poolers before the server."""

"""Pure federation: one flat vector, one round as a table of states, what passes between a site and the server."""

"""How nodes find each other: so far, the peers that the owner named."""

"""One running participant of the mesh."""

"""Where a request goes: local first, then peers, by the owner's policy; and how the answer comes back as text."""

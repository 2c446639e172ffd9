"""The demo: three nodes on this machine trade with each other, one of them perhaps a cheat."""

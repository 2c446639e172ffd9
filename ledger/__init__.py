"""The book: signed records, and the money that follows from them.

Pure except for the modules that say (io): time, entropy and storage come in as arguments.
"""

"""The four services of a trading node, written against ports: buyer, seller, auditor, settler."""

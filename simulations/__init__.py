"""Agents, scenarios and metrics over the rules that real nodes run: their place; none are here yet."""

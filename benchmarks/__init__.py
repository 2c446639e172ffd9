"""What README and CHANGELOG claim about speed, one script each: `python -m benchmarks.NAME [--json]`."""

"""The rails on which a debt is paid: credit now, and a port for those to come."""

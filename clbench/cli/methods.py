"""`clbench methods`: the strategies that are installed."""

from clbench.cli.listing import list_command

command = list_command("methods", "method", "strategies", ("paper", "reference"),
                       "List the installed methods, where each comes from, and its options.")

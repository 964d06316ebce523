"""`clbench benchmarks`: the benchmarks that are installed."""

from clbench.cli.listing import list_command

command = list_command("benchmarks", "benchmark", "benchmarks", ("scenarios",),
                       "List the installed benchmarks, their scenarios and options.")

"""`clbench trackers`: the trackers that are installed."""

from clbench.cli.listing import list_command

command = list_command("trackers", "tracker", "trackers", (),
                       "List the installed trackers, which clbench run --log shows records to, and their options.")

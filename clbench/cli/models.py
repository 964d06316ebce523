"""`clbench models`: the models that are installed."""

from clbench.cli.listing import list_command

command = list_command("models", "model", "models", (), "List the installed models and their options.")

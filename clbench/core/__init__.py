"""The foundations: errors, options, plugins, seeds, files, devices. Nothing here trains."""

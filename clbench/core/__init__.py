"""What everything stands on: errors, options, plugins, seeds, files, devices. It trains nothing."""

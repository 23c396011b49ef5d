"""The `slmkit` command, one thin file per sub-command."""

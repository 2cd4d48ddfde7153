"""The command line: typed settings, the list of commands, and what each does first."""

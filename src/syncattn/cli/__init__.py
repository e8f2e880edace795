"""The command line, a file for each command. Imports nothing: `app` has the program."""

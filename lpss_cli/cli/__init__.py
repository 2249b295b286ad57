"""The command line: parsing, help, completion and printing."""

"""What all commands share: the command line, the terminal, the options."""

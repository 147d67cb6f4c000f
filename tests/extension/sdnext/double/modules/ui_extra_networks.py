"""Cards of networks, which the extension leaves to the program."""

"""The program's own nodes, of which the double has none."""

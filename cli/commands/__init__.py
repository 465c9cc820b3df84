"""The commands, a file for each family. A module offers the click commands that program.py names."""

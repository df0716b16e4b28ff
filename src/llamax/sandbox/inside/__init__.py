"""What runs on the far side of `execute`: the launcher that shuts itself in, and the start of the program's Python.

These files are imported by a bare interpreter (`python -I -S`), so they use the standard library only, and little of
it: every import here is paid for by every program.
"""

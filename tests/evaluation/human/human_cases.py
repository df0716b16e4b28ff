"""What the tests of human evaluation share."""

import json

NAMES = ("zebrafinch-7b", "okapi-13b")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

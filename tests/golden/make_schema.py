"""Writes schema_v1.txt and messages_v1.txt: run it from the repository's root when the schema has grown.

It refuses to write when something that was in the schema is gone or has changed.

PYTHONPATH=.:tests/support python tests/golden/make_schema.py
"""

from schema import write_golden_files

if __name__ == "__main__":
    write_golden_files()

"""Keeping datasets sound: checking, taking out, sweeping, joining, bringing forward.

Its rooms:

    verify damage ledger agreement findings repair
                    whether everything is what was committed, and making it so again
    remains erasure sweep
                    what is left of removed sources, erasing it, deleting what nothing names
    merge union excerpt
                    several datasets as one
    overlap neighbours
                    what two datasets share
    migrate version1
                    datasets of older format versions
    cli migrate_cli the commands
"""

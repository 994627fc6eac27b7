"""The hunt for lost and silently wrong results: faults of a kind, tried at points that a seed chooses.

    python -m tests.torture [short] [seed=0] [only=WORD] [keep=DIR]

It prints one table: fault, tries, survived, lost; and of each loss the try that shows it. The exit status is 1 where anything was lost.
Needs ``os.fork``: commands run in children of one process, which has imported torch already.
"""

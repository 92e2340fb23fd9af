"""`python check_installation.py [FOLDER]`: does this installation answer as the one where the model was published?

Ships flat beside golden_outputs.py, whose golden picture it uses; needs torch, transformers and Pillow alone. The exit
status is 1, with the reason, where an answer differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from golden_outputs import check_golden  # beside this file, in the folder that was downloaded

if __name__ == "__main__":
    try:
        sys.stdout.write(check_golden(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent) + "\n")
    except ValueError as error:
        sys.exit(f"golden outputs: {error}")

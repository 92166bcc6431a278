"""Write the results table and the report of a study again, from what its store has."""

import sys

from rayexp.cli.report import main

if __name__ == "__main__":
    sys.exit(main())

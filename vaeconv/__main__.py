"""``python -m vaeconv``."""

from vaeconv.cli import main

if __name__ == "__main__":
    main()
